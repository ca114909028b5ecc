"""gRPC's length-prefixed messages: a flag, four bytes of length, and the message."""

from __future__ import annotations

import struct

import grpc

from digits_server.rpc.limits import MAX_MESSAGE_BYTES

PREFIX = struct.Struct(">BI")


class Refused(Exception):
    """Raise when what comes is no message that this server takes; says how the call ends."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def frame(message: bytes) -> bytes:
    """Return a message with its prefix."""
    return PREFIX.pack(0, len(message)) + message


class Frames:
    """Finds the messages in what comes of a call. One that announces too much is refused before it is held."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether no part of a message waits for the rest."""
        return not self._data

    @property
    def is_full(self) -> bool:
        """Whether there is as much as a message may have."""
        return len(self._data) >= MAX_MESSAGE_BYTES

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._data += data

    def next(self) -> bytes | None:
        """Return the next message; None: it has not come to its end.

        Raises:
            Refused: It is longer than allowed, by its own word, or compressed.
        """
        data = self._data
        if len(data) < PREFIX.size:
            return None
        flag, length = PREFIX.unpack_from(data)
        if flag:  # 4 MB can unpack to 4 GB
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not taken; allowed is identity")
        if length > MAX_MESSAGE_BYTES:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"SERVER: Received message larger than max ({length} vs. {MAX_MESSAGE_BYTES})",
            )
        end = PREFIX.size + length
        if len(data) < end:
            return None
        message = bytes(memoryview(data)[PREFIX.size : end])
        del data[:end]
        return message
