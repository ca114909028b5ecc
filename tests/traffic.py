"""Callers of a real server who never stop, and remember what became of every single call."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

import grpc
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


@dataclass(frozen=True)
class Call:
    """One call and its end."""

    start: float
    end: float
    digit: int
    answer: int | None = None
    version: str = ""
    code: str = "OK"


class Traffic:
    """Calls a server from some threads as long as the `with` block lasts.

    Args:
        address: The server's.
        model, version: What to ask for.
        threads: Callers.
    """

    def __init__(self, address, *, model="", version="", threads=3):
        self._address, self._model, self._version = address, model, version
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_on, args=(seed,)) for seed in range(threads)]
        self.calls: list[Call] = []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.until(lambda: len(self.calls) >= 20)
        return self

    def __exit__(self, *_exception):
        if not _exception[0]:
            seen = len(self.calls)
            self.until(lambda: len(self.calls) >= seen + 20)  # what has changed last shows in the calls
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call_on(self, seed):
        digits = random.Random(seed)
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = pb_grpc.DigitClassifierStub(channel)
            while not self._stop.is_set():
                digit, start = digits.randrange(10), time.monotonic()
                request = pb.ClassifyRequest(pixels=image_of(digit).tobytes(), model=self._model, version=self._version)
                try:
                    response = stub.Classify(request, timeout=20)
                except grpc.RpcError as error:
                    self.calls.append(Call(start, time.monotonic(), digit, code=error.code().name))
                else:
                    answer = response.digits[0]
                    self.calls.append(Call(start, time.monotonic(), digit, answer, response.version))

    @property
    def codes(self) -> dict[str, int]:
        """How many calls ended with which status."""
        return dict(Counter(call.code for call in self.calls))

    @property
    def wrong(self) -> list[Call]:
        """Answers that are not those of the version they name: toy version v answers digit + v - 1."""
        return [
            call for call in self.calls if call.version and call.answer != (call.digit + int(call.version) - 1) % 10
        ]

    def came_from(self, *versions: str) -> bool:
        """Whether these versions answered, each taking over once: whoever called after an answer got none older."""
        answered = [call for call in self.calls if call.version]
        first = {version: min(call.end for call in answered if call.version == version) for version in versions}
        return {call.version for call in answered} == set(versions) and all(
            call.start <= first[later] for call in answered for later in versions[versions.index(call.version) + 1 :]
        )

    def until(self, condition, timeout_s=40):
        """Wait, while calls go on, until a condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "the condition never came true"
            self._stop.wait(0.02)
