"""Attacks a server of its own with what no client should send, and judges it: `make fuzz`.

What is sent follows from the seed, so a finding can be sent again. The judgement, for each transport: the same process,
memory within 10 % of what it was after the first quarter, right answers, a log without a stack, each of its lines an
object of JSON.
"""

import argparse
import json
import random
import socket
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # `conftest` is the outer one

import grpc
from conftest import start_server
from http2 import CLASSIFY, HEADERS, Connection, framed
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from open_inference.v2 import inference_pb2 as infer_pb

STREAM, LIST = (f"/digits.v1.DigitClassifier/{name}" for name in ("ClassifyStream", "ListModels"))
INFER, METADATA = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelMetadata"))
METHODS = (
    *(CLASSIFY, STREAM, LIST, INFER, METADATA, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
FAULTS_OF_OURS = {grpc.StatusCode[name].value[0] for name in ("UNKNOWN", "INTERNAL", "DATA_LOSS")}
GRPC_SAYS = ("Error parsing '", "Illegal header key: ")
"""What gRPC calls INTERNAL itself, without asking us."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_S = 0.3
"""How long an answer is waited for; to a call that is never completed there may be none."""
BURST = 20
"""Calls at once of the attacks whose messages are what is odd."""
MEMORY = 1.1
"""Most that the server may grow, times."""
FORGED = '\n{"level": "INFO", "message": "forged"}\n'


def valid_requests():
    """Return requests that use every field."""
    pixels = image_of(3).tobytes()
    full = pb.ClassifyRequest(
        model="toy-b", version="1", pixels=pixels * 2, top_k=3, omit_probabilities=True, request_id="id"
    )
    floats = pb.ClassifyRequest(vectors=[0.5] * 784)
    tensor = infer_pb.ModelInferRequest.InferInputTensor
    raw = infer_pb.ModelInferRequest(
        model_name="toy-b",
        model_version="1",
        id="id",
        inputs=[tensor(name="vectors", datatype="UINT8", shape=[2, 784])],
        outputs=[infer_pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
        raw_input_contents=[pixels * 2],
    )
    typed = infer_pb.ModelInferRequest(
        model_name="toy-b", inputs=[tensor(name="vectors", datatype="FP32", shape=[1, 28, 28])]
    )
    typed.inputs[0].contents.fp32_contents.extend([0.5] * 784)
    return [pb.ClassifyRequest(pixels=pixels), full, floats, pb.ClassifyStreamRequest(request=full), raw, typed]


def varint(number: int) -> bytes:
    """Return the base-128 encoding of a number >= 0, as protobuf has it."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


class Fuzzer:
    """Sends one attack after the other.

    Args:
        port: The server's.
        seed: What everything sent follows from.
        is_native: Whether the server is one that unpacks whatever it gets; it is spared what is known to hurt it.
    """

    def __init__(self, port, seed, *, is_native=False):
        self.port, self.random = port, random.Random(seed)
        self.requests = [request.SerializeToString() for request in valid_requests()]
        packer = zlib.compressobj(9, wbits=31)
        self.packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
        self.outcomes = Counter()
        self.faults = []
        """(attack, path, message) of calls that ended as a fault of the server's."""
        self._connection = None
        self.attacks = [
            *(self.random_message, self.mutated_message, self.mutated_message, self.unknown_fields, self.deep_groups),
            *(self.lying_prefix, self.truncated, self.odd_request, self.odd_metadata, self.header_flood),
            *(
                self.other_protocol,
                self.random_frames,
                self.mutated_frames,
                self.resets,
                self.never_reads,
                self.silence,
            ),
        ]
        if not is_native:
            self.attacks += [self.bomb, self.announced]

        # Headers that gRPC finds fault with leave its decoder, and so the connection, in a state of its own.
        self.spoiling = {self.odd_request, self.odd_metadata, self.header_flood, self.lying_prefix, self.truncated}

    @property
    def connection(self):
        """A connection that is alive, the last one if it still is."""
        if (
            self._connection is None
            or self._connection.is_closed
            or self._connection.h2.highest_outbound_stream_id > 500
        ):
            self.hang_up()
            self._connection = Connection(self.port, timeout_s=PATIENCE_S)
        return self._connection

    def hang_up(self):
        """Close the connection that is kept."""
        if self._connection:
            self._connection.socket.close()
            self._connection = None

    def run(self, seconds):
        """Attack for some seconds, at least once in each way."""
        end = time.monotonic() + seconds
        todo = list(self.attacks)
        while todo or time.monotonic() < end:
            attack = todo.pop() if todo else self.random.choice(self.attacks)
            try:
                outcome = attack()
            except (OSError, ValueError, KeyError) as error:  # the server has hung up, or our HTTP/2 won't go on
                outcome = type(error).__name__
                self.hang_up()
            if attack in self.spoiling:
                self.hang_up()
            self.outcomes.update((attack.__name__, each) for each in (outcome if type(outcome) is list else [outcome]))

    def call(self, body, path=CLASSIFY, **headers):
        """Make a call."""
        connection = self.connection
        stream = connection.open(path, **headers)
        connection.write(stream, body)
        return self.judge(connection.outcome(stream), stream, body, path, headers)

    def calls(self, make):
        """Make some calls at once."""
        made, connection = [make() for _ in range(BURST)], self.connection
        streams = [connection.open(path) for _, path in made]
        for stream, (body, _) in zip(streams, made, strict=True):
            connection.write(stream, body)
        return [
            self.judge(connection.outcome(stream), stream, body, path)
            for stream, (body, path) in zip(streams, made, strict=True)
        ]

    def judge(self, outcome, stream, body, path, headers=""):
        """Note a call's outcome if the server says that the fault is its own."""
        if outcome in FAULTS_OF_OURS:
            words = self.connection.answers[stream].get("grpc-message", "")
            if not words.startswith(GRPC_SAYS):
                self.faults.append((words, path, len(body), body[:60].hex(), str(headers)[:200]))
        return outcome

    def path(self):
        return self.random.choice(METHODS)

    def bytes(self, most):
        return self.random.randbytes(self.random.randrange(most))

    # What is inside a message.

    def random_message(self):
        return self.calls(lambda: (framed(self.bytes(2000)), self.path()))

    def mutate(self, data):
        """Return data with some bytes changed, doubled, dropped, or numbers made large."""
        data = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 4, 16))):
            at = self.random.randrange(len(data) + 1)
            match self.random.randrange(6):
                case 0:
                    data[at : at + 1] = self.random.randbytes(1)
                case 1:
                    data[at:at] = data[max(0, at - self.random.randrange(40)) : at]
                case 2:
                    del data[at : at + self.random.randrange(1, 40)]
                case 3:
                    data[at : at + 1] = b"\xff" * self.random.randrange(1, 11) + b"\x01"
                case 4:
                    data[at:at] = self.random.choice(self.requests)[: self.random.randrange(100)]
                case 5 if data:
                    data[at % len(data)] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def mutated_message(self):
        return self.calls(self.mutated)

    def mutated(self):
        """Return mutated messages, and where to send them."""
        messages = [self.mutate(self.random.choice(self.requests)) for _ in range(self.random.choice((1, 1, 1, 5)))]
        path = self.random.choice((CLASSIFY, STREAM, INFER)) if len(messages) == 1 else STREAM
        return b"".join(map(framed, messages)), path

    def unknown_fields(self):
        return self.calls(self.with_unknown_fields)

    def with_unknown_fields(self):
        """Return a request with fields that it doesn't have, and where to send it."""
        fields = b"".join(
            varint(self.random.randrange(1 << 29) << 3 | self.random.randrange(8)) + self.random.randbytes(8)
            for _ in range(self.random.randrange(50))
        )
        return framed(self.random.choice(self.requests) + fields), self.path()

    def deep_groups(self):
        depth = self.random.choice((50, 99, 100, 101, 1000, 10_000, 100_000))
        number = self.random.choice((100, 3, 1))
        closed = varint(number << 3 | 4) * depth if self.random.random() < 0.5 else b""
        return self.call(framed(varint(number << 3 | 3) * depth + closed), self.path())

    # How it is wrapped.

    def lying_prefix(self):
        body = framed(self.random.choice(self.requests), self.random.randrange(256), self.random.randrange(2000))
        return self.connection.call(body, self.path())

    def truncated(self):
        body = framed(self.random.choice(self.requests))
        return self.connection.call(body[: self.random.randrange(len(body))], self.path())

    def announced(self):
        stream = self.connection.open(self.path())
        self.connection.write(stream, framed(b"", length=2**32 - 1 - self.random.randrange(2**30)), end=False)
        return self.connection.outcome(stream)

    def bomb(self):
        more = self.random.choice(([("grpc-encoding", "gzip")], [("grpc-encoding", "deflate")], []))
        return self.connection.call(framed(self.packed, flag=1), self.path(), more=more)

    # How it is asked.

    def odd_request(self):
        odd = [
            [
                (
                    "content-type",
                    self.random.choice(("text/html", "application/grpc-web+proto", "application/grpcX", "")),
                )
            ],
            [("te", "gzip")],
            [("grpc-timeout", self.random.choice(("0n", "1n", "-1S", "99999999999H", "1", "S", "1000000000S")))],
            [("grpc-encoding", self.random.choice(("br", "identity", "", "x" * 500)))],
            [("content-length", str(self.random.randrange(2**40)))],
            [],
        ]
        path = self.random.choice((self.path(), "/", "", "*", "/../../etc/passwd", "/a/b", CLASSIFY + "/", "x" * 3000))
        headers = [*self.random.choice(odd), *self.random.choice((HEADERS, ()))]
        return self.connection.call(framed(self.requests[0]), path, headers=headers)

    def odd_metadata(self):
        name = self.random.choice(
            ("authorization", "x-odd", "traceparent", "x-bin", "user-agent", "grpc-tags-bin", ":odd")
        )
        value = self.random.choice((FORGED, "\x00", "é", "\udcff", "%00%0a", "Bearer " + FORGED, "\x7f" * 99, "=" * 7))
        request_id = self.random.choice((FORGED, "\x00", "é" * 200, "<script>", "%s%n"))
        message = pb.ClassifyRequest(pixels=bytes(784), request_id=request_id, model=self.random.choice(("", FORGED)))
        more = [(name, value.encode(errors="surrogateescape"))]
        return self.call(framed(message.SerializeToString()), more=more)

    def header_flood(self):
        count, size = self.random.choice(((1000, 10), (20, 1000), (1, 60_000), (5000, 1)))
        more = [(f"x-{number}", "y" * size) for number in range(count)]
        return self.connection.call(framed(self.requests[0]), self.path(), more=more)

    # What isn't gRPC, or not even HTTP/2.

    def raw(self, *parts):
        """Send bytes on a connection of their own, and read until the server hangs up or says nothing."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                while connection.recv(1 << 16):
                    pass
            except TimeoutError:
                return "silent"
            except OSError:
                return "closed"
            return "ended"

    def other_protocol(self):
        return self.raw(
            self.random.choice(
                (
                    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
                    b"POST /digits.v1.DigitClassifier/Classify HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\nx",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self.random.randbytes(500),
                    PREFACE[: self.random.randrange(24)],
                    self.bytes(5000),
                    b"\x00" * 10_000,
                )
            )
        )

    def frame(self):
        """Return a frame of any kind, with a length that is right or nearly so."""
        payload = self.bytes(self.random.choice((8, 64, 1000)))
        length = self.random.choice((len(payload), len(payload), len(payload), self.random.randrange(1 << 24)))
        kind, flags = self.random.choice((*range(11), self.random.randrange(256))), self.random.randrange(256)
        stream = self.random.choice((0, 1, 2, 3, 2**31 - 1))
        return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    def random_frames(self):
        settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        return self.raw(PREFACE, settings, *(self.frame() for _ in range(self.random.randrange(1, 30))))

    def mutated_frames(self):
        """Send a good conversation, some bytes of which are changed."""
        recorded = []
        connection = Connection(self.port)
        connection.send = recorded.append
        stream = connection.open(self.path())
        connection.write(stream, framed(self.random.choice(self.requests)))
        connection.socket.close()
        return self.raw(PREFACE, b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", self.mutate(b"".join(recorded)))

    # Who doesn't stay to the end.

    def resets(self):
        """Begin calls and cancel them at once (CVE-2023-44487)."""
        with Connection(self.port) as connection:
            for _ in range(100):
                stream = connection.open(self.path())
                if self.random.random() < 0.5:
                    connection.write(stream, framed(self.requests[0]))
                if stream not in connection.ended:
                    connection.h2.reset_stream(stream, 8)
                    connection.flush()
        return "left"

    def never_reads(self):
        """Ask for answers and take none."""
        with Connection(self.port) as connection:
            connection.h2.update_settings({4: 0})  # no room for answers
            for _ in range(20):
                connection.write(connection.open(self.random.choice((CLASSIFY, LIST))), framed(self.requests[1]))
        return "left"

    def silence(self):
        """Leave in the middle of a message."""
        with Connection(self.port) as connection:
            stream = connection.open(self.path())
            connection.write(stream, framed(self.requests[1])[: self.random.randrange(1, 700)], end=False)
        return "left"


def right_answers(server):
    """Return whether a normal client gets right answers."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        return all(
            call(pb.ClassifyRequest(pixels=image_of(digit).tobytes()).SerializeToString(), timeout=60).digits == [digit]
            for digit in range(10)
        )


def log_faults(text):
    """Return what is wrong with a log."""
    faults = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            faults.append(f"not JSON: {line[:300]}")
            continue
        if not {"time", "level", "logger", "message"} <= entry.keys():
            faults.append(f"forged: {line[:300]}")
        elif "exc_info" in entry or "Traceback" in line:
            faults.append(f"stack: {line[-600:]}")
    return faults


def campaign(server, seconds, seed, *, is_native):
    """Attack a server and return what was sent, and what is wrong with the server."""
    fuzzer = Fuzzer(int(server.address.rpartition(":")[2]), seed, is_native=is_native)
    fuzzer.run(seconds / 4)
    before_mb = server.memory_mb
    fuzzer.run(seconds * 3 / 4)
    fuzzer.hang_up()
    findings = [f"fault: {fault}" for fault in fuzzer.faults]
    if server.process.poll() is not None:
        return fuzzer.outcomes, [*findings, f"the process ended with status {server.process.returncode}"]
    if not right_answers(server):
        findings.append("wrong answers")
    if (after_mb := server.memory_mb) > MEMORY * before_mb:
        findings.append(f"memory grew from {before_mb:.0f} to {after_mb:.0f} MB")
    return fuzzer.outcomes, findings + log_faults(server.log)


def main():
    """Run a campaign on each transport; exit status 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all transports together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--transport", action="append", choices=["grpcio", "native"], help="default: both")
    options = parser.parse_args()
    transports = options.transport or ["grpcio", "native"]
    is_bad = False
    for transport in transports:
        with tempfile.TemporaryDirectory() as folder:
            write_package(Path(folder) / "models" / "toy-b" / "1")
            server = start_server(Path(folder) / "models", Path(folder), f"--transport={transport}")
            outcomes, findings = campaign(
                server, options.seconds / len(transports), options.seed, is_native=transport == "native"
            )
            findings += [] if server.stop() == 0 else ["it did not end well"]
        print(f"{transport}: seed {options.seed}, {outcomes.total()} attacks, {len(findings)} findings")
        for attack, counts in _by_attack(outcomes).items():
            print(f"  {attack:16} {counts.total():7}  " + ", ".join(f"{what}: {n}" for what, n in counts.most_common()))
        for finding, count in Counter(findings).most_common(20):
            print(f"  FINDING {count} x {finding}")
        is_bad |= bool(findings)
    return int(is_bad)


def _by_attack(outcomes):
    by_attack = {}
    for (attack, outcome), count in sorted(outcomes.items(), key=str):
        by_attack.setdefault(attack, Counter())[outcome] += count
    return by_attack


if __name__ == "__main__":
    sys.exit(main())
