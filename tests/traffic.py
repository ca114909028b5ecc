"""Callers of real servers who go on calling while a test does something to them, and what became of every call."""

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
from conftest import wait_until
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import CallError, DigitClient, DigitsError


@dataclass(frozen=True)
class Call:
    """One call of a toy model and its end."""

    start: float
    end: float
    digit: int
    answer: int | None = None
    version: str = ""
    code: str = "OK"
    fault: str = ""

    @property
    def outcome(self) -> str:
        """`right`, `wrong`, or the name of a status. Right is what toy version v answers: digit + v - 1."""
        if self.code != "OK":
            return self.code
        return "right" if self.answer == (self.digit + int(self.version) - 1) % 10 else "wrong"


class Traffic:
    """Callers on threads; as long as the `with` block lasts, each calls again as soon as it has its answer.

    The block begins when some calls have ended, and lasts until some more have.

    Args:
        to: A server's address; or a client, which all callers of the SDK then share.
        bare: Callers of a generated stub, which does not retry. Each has a connection of its own.
        sdk: Callers of the SDK, which does.
        model, version: What to ask for.
        timeout_s: Each call's deadline.
        pause_s: Of a caller before each call.

    Attributes:
        calls: Those that have ended.
        sent: How many have begun.
    """

    def __init__(self, to, *, bare=3, sdk=0, model="", version="", timeout_s=20.0, pause_s=0.0):
        self._to, self._model, self._version = to, model, version
        self._timeout_s, self._pause_s = timeout_s, pause_s
        self._stop = threading.Event()
        callers = [self._bare] * bare + [self._sdk] * sdk
        self._threads = [threading.Thread(target=self._call, args=caller) for caller in enumerate(callers)]
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.sent = 0

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *exception):
        if not exception[0]:
            self.more(20)  # what has changed last shows in the calls
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, calls):
        """Return when so many more calls have ended."""
        enough = len(self.calls) + calls
        wait_until(lambda: len(self.calls) >= enough)

    @property
    def outcomes(self) -> Counter[str]:
        """How many calls ended how. Every call that was sent ends in one of them."""
        return Counter(call.outcome for call in self.calls)

    @property
    def versions(self) -> Counter[str]:
        """How many calls which version answered."""
        return Counter(call.version for call in self.calls if call.version)

    @property
    def faults(self) -> list[str]:
        """What the calls that failed said, and after which time."""
        return [f"{call.end - call.start:.2f} s: {call.fault}" for call in self.calls if call.fault]

    def came_from(self, *versions: str) -> bool:
        """Whether these versions answered, each taking over once: whoever called after an answer got none older."""
        answered = [call for call in self.calls if call.version]
        first = {version: min(call.end for call in answered if call.version == version) for version in versions}
        return {call.version for call in answered} == set(versions) and all(
            call.start <= first[later] for call in answered for later in versions[versions.index(call.version) + 1 :]
        )

    def _bare(self, stack):
        channel = stack.enter_context(grpc.insecure_channel(self._to, [("grpc.use_local_subchannel_pool", 1)]))
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(model=self._model, version=self._version)

        def ask(image):
            request.pixels = image.tobytes()
            response = stub.Classify(request, timeout=self._timeout_s)
            return response.digits[0], response.version

        return ask

    def _sdk(self, stack):
        client = self._to
        if not isinstance(client, DigitClient):
            client = DigitClient(self._to, timeout_s=self._timeout_s, model=self._model, version=self._version)
            stack.enter_context(client)

        def ask(image):
            answer = client.classify(image)
            return answer.digit, answer.version

        return ask

    def _call(self, seed, caller):
        digits = random.Random(seed)
        with ExitStack() as stack:
            ask = caller(stack)
            while not self._stop.wait(self._pause_s):
                with self._lock:
                    self.sent += 1
                digit, start = digits.randrange(10), time.monotonic()
                try:
                    answer, version = ask(image_of(digit))
                    end = {"answer": answer, "version": version}
                except DigitsError as error:
                    code = error.code.name if isinstance(error, CallError) else type(error).__name__
                    end = {"code": code, "fault": str(error)}
                except grpc.RpcError as error:
                    end = {"code": error.code().name, "fault": error.details()}
                self.calls.append(Call(start, time.monotonic(), digit, **end))
