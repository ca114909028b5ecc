"""Callers who never pause, and what became of each of their calls."""

import threading
from collections import Counter
from contextlib import ExitStack

import grpc
import numpy as np
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import DigitClient, DigitsError

DEADLINE_S = 5.0


class Traffic:
    """Callers on threads; while entered, each asks again as soon as it is answered.

    Args:
        address: The server's.
        sdk: Callers of the SDK, which retries.
        bare: Callers of a generated stub, which does not.

    Attributes:
        outcomes: Calls by outcome: `right`, `wrong`, or the name of a status. Every call ends in one of them.
        sent: Calls begun.
    """

    def __init__(self, address, *, sdk=0, bare=0):
        self._address = address
        self._stop = threading.Event()
        callers = [self._sdk] * sdk + [self._bare] * bare
        self._threads = [threading.Thread(target=self._call, args=(make, seed)) for seed, make in enumerate(callers)]
        self._lock = threading.Lock()
        self.outcomes = Counter()
        self.sent = 0

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _sdk(self, stack):
        client = stack.enter_context(DigitClient(self._address, timeout_s=DEADLINE_S, version="1", model="toy-a"))
        return lambda pixels: client.classify(np.frombuffer(pixels, np.uint8)).digit

    def _bare(self, stack):
        channel = stack.enter_context(grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]))
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(model="toy-a", version="1")

        def ask(pixels):
            request.pixels = pixels
            return stub.Classify(request, timeout=DEADLINE_S).digits[0]

        return ask

    def _call(self, make, seed):
        digits = np.random.default_rng(seed)
        with ExitStack() as stack:
            ask = make(stack)
            while not self._stop.is_set():
                digit = int(digits.integers(10))
                with self._lock:
                    self.sent += 1
                outcome = self._outcome(ask, digit)
                with self._lock:
                    self.outcomes[outcome] += 1

    @staticmethod
    def _outcome(ask, digit):
        try:
            return "right" if ask(image_of(digit).tobytes()) == digit else "wrong"
        except DigitsError as error:
            return error.code.name if getattr(error, "code", None) else type(error).__name__
        except grpc.RpcError as error:
            return error.code().name
