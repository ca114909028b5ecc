"""What an RPC means: message to arrays, inference, arrays to message."""
