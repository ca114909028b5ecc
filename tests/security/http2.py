"""A client of HTTP/2 that does what it is told, also what no gRPC client would do."""

import socket
import struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
HEADERS = (("content-type", "application/grpc"), ("te", "trailers"))
NO_CHECKS = H2Configuration(
    validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
)


def framed(message, flag=0, length=None):
    """Return a message with gRPC's prefix; `length`: what the prefix says, if not the truth."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


class Connection:
    """One connection, and what has come back on it.

    Attributes:
        answers: Headers and trailers by stream, as {name: value}.
        messages: What else has come, by stream.
        ended: Streams that the server has ended or reset.
        is_closed: Whether the server has closed the connection.
        goaway: Error code of the server's GOAWAY; None: there was none.
    """

    def __init__(self, port, timeout_s=20):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.h2 = H2Connection(NO_CHECKS)
        self.answers, self.messages, self.ended, self.is_closed, self.goaway = {}, {}, {}, False, None
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def flush(self):
        self.send(self.h2.data_to_send())

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:  # it has had enough of us
            self.is_closed = True

    def open(self, path=CLASSIFY, *, headers=HEADERS, more=(), end=False):
        """Begin a call and return its stream."""
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        self.h2.send_headers(stream, [*pseudo, *headers, *more], end_stream=end)
        self.flush()
        return stream

    def write(self, stream, body, *, end=True):
        """Send bytes on a stream, as flow control allows, until all are sent or the server wants no more."""
        while not (self.is_closed or stream in self.ended):
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(body))
            if size or not body:
                chunk, body = body[:size], body[size:]
                self.h2.send_data(stream, chunk, end_stream=end and not body)
                self.flush()
                if not body:
                    return
            else:
                self.read()

    def read(self):
        """Take in what comes next."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self.is_closed = True
            return
        for event in self.h2.receive_data(data):
            match event:
                case ResponseReceived() | TrailersReceived():
                    text = {name.decode(): value.decode() for name, value in event.headers}
                    self.answers.setdefault(event.stream_id, {}).update(text)
                case DataReceived():
                    self.messages[event.stream_id] = self.messages.get(event.stream_id, b"") + event.data
                case StreamEnded():
                    self.ended.setdefault(event.stream_id, None)
                case StreamReset():
                    self.ended[event.stream_id] = event.error_code
                case ConnectionTerminated():
                    self.goaway = event.error_code
        self.flush()

    def outcome(self, stream):
        """Wait for a call's end and return its gRPC status, "reset <code>" or "closed"."""
        while not (self.is_closed or stream in self.ended):
            self.read()
        answer = self.answers.get(stream, {})
        if "grpc-status" in answer:
            return int(answer["grpc-status"])
        if ":status" in answer:
            return f"HTTP {answer[':status']}"
        return f"reset {self.ended[stream]}" if stream in self.ended else "closed"

    def call(self, body, path=CLASSIFY, **headers):
        """Make one call and return its outcome."""
        stream = self.open(path, **headers)
        self.write(stream, body)
        return self.outcome(stream)
