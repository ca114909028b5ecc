"""For the tests of programs that use this package: clients without a server, and a real server as a pytest fixture.

`FakeDigitClient` and `FakeAsyncDigitClient` are clients whose answers you give; what you pass them is read, prepared
and refused just as by the real ones. For the fixture, put `pytest_plugins = ["digits_client.testing"]` in conftest.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from digits.v1 import classifier_pb2 as pb
from digits_client import _settings
from digits_client._async_client import AsyncDigitClient
from digits_client._client import DigitClient
from digits_client._errors import CallError, InvalidRequest

try:
    import pytest
except ModuleNotFoundError:  # the fakes work without it
    pytest = None  # type: ignore[assignment]

Answer = int | Sequence[float] | npt.NDArray[np.floating[Any]]
"""A digit, recognised with certainty; or ten probabilities."""
Answerer = Callable[[npt.NDArray[np.generic]], Answer]
"""Gets the (28, 28) image, uint8 or float32, as the server would; may raise any `CallError` instead of answering."""


class _Fake(_settings.BaseClient):
    """What both fakes share: answers for bytes.

    Args:
        answer: The answer to each image, or what gives it.
        arguments: As of a real client; they are checked and otherwise ignored.
    """

    def __init__(self, answer: Answer | Answerer, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._answer: Answerer = answer if callable(answer) else lambda _: answer
        self.images: list[npt.NDArray[np.generic]] = []
        """The (28, 28) images that were sent, oldest first."""

    def _respond(self, method: str, request: bytes) -> bytes:
        self._check_usable()
        if method == _settings.CHECK:
            return bytes([1 << 3, 1])  # SERVING
        if method == _settings.LIST_MODELS:
            model = pb.Model(name="fake", version="1", is_default=True, state=pb.MODEL_STATE_SERVING)
            return pb.ListModelsResponse(models=[model]).SerializeToString()
        message = pb.ClassifyRequest.FromString(request)
        pixels = np.frombuffer(message.pixels, np.uint8) if message.pixels else np.array(message.vectors, np.float32)
        if not len(pixels):
            raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "pixels: no images")
        images: list[npt.NDArray[np.generic]] = list(pixels.reshape(-1, 28, 28))
        self.images += images
        probabilities = np.stack([_probabilities(self._answer(image)) for image in images])
        return pb.ClassifyResponse(
            digits=probabilities.argmax(axis=1).tolist(),
            confidences=probabilities.max(axis=1).tolist(),
            probabilities=probabilities.ravel().tolist(),
            quality_flags=[0] * len(images),
            model=message.model or "fake",
            version=message.version or "1",
            timing=pb.Timing(batch_size=len(images)),
        ).SerializeToString()

    def _respond_streamed(self, request: bytes) -> bytes:
        message = pb.ClassifyStreamRequest.FromString(request)
        try:
            answer = self._respond(_settings.CLASSIFY, message.request.SerializeToString())
        except CallError as error:
            fault = pb.StreamError(code=error.code.value[0], message=error.details)
            return pb.ClassifyStreamResponse(error=fault).SerializeToString()
        return pb.ClassifyStreamResponse(response=pb.ClassifyResponse.FromString(answer)).SerializeToString()


class FakeDigitClient(_Fake, DigitClient):
    """A `DigitClient` without a server.

    >>> fake = FakeDigitClient(7)
    >>> fake.classify(np.zeros((28, 28), np.uint8)).digit
    7
    """

    def _start(self) -> None:
        pass

    def _ask(self, method: str, request: bytes, _timeout_s: float | None) -> bytes:
        return self._respond(method, request)

    def _begin(self, method: str, request: bytes, _timeout_s: float | None) -> Any:
        call: Future[bytes] = Future()
        call.set_result(self._respond(method, request))
        return call

    def _ask_stream(self, requests: Iterator[bytes], _timeout_s: float) -> Iterator[bytes]:
        return map(self._respond_streamed, requests)


class FakeAsyncDigitClient(_Fake, AsyncDigitClient):
    """An `AsyncDigitClient` without a server; concurrent calls are merged as by the real one."""

    def _open_channels(self) -> None:
        pass

    async def _ask(self, method: str, request: bytes, _timeout_s: float) -> bytes:
        return self._respond(method, request)

    async def _ask_stream(self, requests: AsyncIterator[bytes], _timeout_s: float) -> AsyncIterator[bytes]:
        async for request in requests:
            yield self._respond_streamed(request)


def _probabilities(answer: Answer) -> npt.NDArray[np.float32]:
    return np.eye(10, dtype=np.float32)[answer] if isinstance(answer, int) else np.array(answer, np.float32)


def serve(*flags: str) -> Iterator[str]:
    """Start a real server on a free port, yield its address, and stop it; `digits-server` must be installed.

    Args:
        flags: Further ones, such as `--models`, without which it serves the models in the folder `models`.

    Raises:
        RuntimeError: The server did not start; it has said why on stderr.
    """
    quiet = ["--port=0", "--metrics-port=0", "--workers=1", "--log-level=warning"]
    command = [sys.executable, "-m", "digits_server", *quiet, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own command
        try:
            ready = re.search(r"ready: gRPC ([^\s,]+)", process.stdout.readline() if process.stdout else "")
            if ready is None:
                raise RuntimeError("digits-server did not start; why stands on stderr")
            yield ready[1]
        finally:
            process.terminate()


if pytest is not None:

    @pytest.fixture(scope="session")
    def digits_server() -> Iterator[str]:
        """Address of a real server, for the whole test run; skips where `digits-server` is not installed."""
        pytest.importorskip("digits_server", reason="digits-server is not installed")
        yield from serve()
