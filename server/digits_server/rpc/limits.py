"""What one caller may ask of any front; docs/security.md tells what comes of more."""

MAX_MESSAGE_BYTES = 4 * 2**20
"""gRPC's own default, on both sides."""
MAX_METADATA_BYTES = 16 * 1024
MAX_STREAMS = 1024
"""Calls on one connection at once."""
MAX_CONNECTIONS = 1000
"""Fewer than the 1024 open files that a process usually may have."""
MESSAGE_S = 20.0
"""Time for the message of a unary call to come."""
