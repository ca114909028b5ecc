"""For the tests of programs that use this package: clients without a server.

What you pass them is read, prepared and refused just as by the real ones; only the answers are yours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2

from digits.v1 import classifier_pb2 as pb
from digits_client import _channel
from digits_client._async_client import AsyncDigitClient
from digits_client._client import DigitClient
from digits_client._errors import CallError, InvalidRequest

Answer = int | np.integer[Any] | Sequence[float] | npt.NDArray[np.floating[Any]]
"""A class, recognised with certainty; or the probabilities of all classes."""
Answerer = Callable[[npt.NDArray[np.generic]], Answer]
"""Gets the (28, 28) image, uint8 or float32, as the server would; may raise any `CallError` instead of answering."""
DIGITS = tuple("0123456789")


class FakeTransport:
    """Answers the calls of either client in place of a server: `DigitClient(transport=FakeTransport(7))`.

    Args:
        answer: The answer to each image, or what gives it.
        labels: What the classes are called.
    """

    def __init__(self, answer: Answer | Answerer, labels: Sequence[str] = DIGITS) -> None:
        self._answer: Answerer = answer if callable(answer) else lambda _: answer
        self._labels = list(labels)
        self._models = [self._model("fake", "1")]
        self.images: list[npt.NDArray[np.generic]] = []
        """The (28, 28) images that were sent, oldest first."""

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:  # noqa: ARG002 - it takes no time
        """Return the answer to one message."""
        if method == _channel.CHECK:
            return health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()
        if method == _channel.LIST_MODELS:
            return pb.ListModelsResponse(models=self._models).SerializeToString()
        return self._classify(pb.ClassifyRequest.FromString(request)).SerializeToString()

    def calls(self, method: str, requests: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to messages that are a call each."""
        return (self.call(method, request, timeout_s) for request in requests)

    def stream(self, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the answers to a stream of messages."""
        return map(self._classify_streamed, requests)

    def close(self) -> None:
        """Do nothing."""

    async def call_async(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""
        return self.call(method, request, timeout_s)

    async def stream_async(self, requests: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:  # noqa: ARG002
        """Yield the answers to a stream of messages."""
        async for request in requests:
            yield self._classify_streamed(request)

    async def close_async(self) -> None:
        """Do nothing."""

    def _model(self, name: str, version: str) -> pb.Model:
        is_default = (name, version) == ("fake", "1")
        state = pb.MODEL_STATE_SERVING
        return pb.Model(name=name, version=version, is_default=is_default, state=state, labels=self._labels)

    def _classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        pixels = np.frombuffer(request.pixels, np.uint8) if request.pixels else np.array(request.vectors, np.float32)
        if not len(pixels):
            raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "pixels: no images")
        images: list[npt.NDArray[np.generic]] = list(pixels.reshape(-1, 28, 28))
        self.images += images
        model = self._model(request.model or "fake", request.version or "1")
        if model not in self._models:
            self._models.append(model)
        probabilities = np.stack([self._probabilities(self._answer(image)) for image in images])
        return pb.ClassifyResponse(
            digits=probabilities.argmax(axis=1).tolist(),
            confidences=probabilities.max(axis=1).tolist(),
            probabilities=probabilities.ravel().tolist(),
            quality_flags=[0] * len(images),
            model=model.name,
            version=model.version,
            timing=pb.Timing(batch_size=len(images)),
        )

    def _classify_streamed(self, request: bytes) -> bytes:
        try:
            answer = self._classify(pb.ClassifyStreamRequest.FromString(request).request)
        except CallError as error:
            fault = pb.StreamError(code=error.code.value[0], message=error.details)
            return pb.ClassifyStreamResponse(error=fault).SerializeToString()
        return pb.ClassifyStreamResponse(response=answer).SerializeToString()

    def _probabilities(self, answer: Answer) -> npt.NDArray[np.float32]:
        if isinstance(answer, int | np.integer):
            answer = np.eye(len(self._labels))[answer]
        return np.array(answer, np.float32)


class FakeDigitClient(DigitClient):
    """A `DigitClient` on a `FakeTransport`, which gets the answer; other arguments are as of a real client.

    >>> fake = FakeDigitClient(7)
    >>> fake.classify(np.zeros((28, 28), np.uint8)).digit
    7
    """

    def __init__(self, answer: Answer | Answerer, **arguments: Any) -> None:
        transport = FakeTransport(answer)
        super().__init__(transport=transport, **arguments)
        self.images = transport.images
        """The (28, 28) images that were sent, oldest first."""


class FakeAsyncDigitClient(AsyncDigitClient):
    """An `AsyncDigitClient` on a `FakeTransport`, as `FakeDigitClient`; concurrent calls are coalesced all the same."""

    def __init__(self, answer: Answer | Answerer, **arguments: Any) -> None:
        transport = FakeTransport(answer)
        super().__init__(transport=transport, **arguments)
        self.images = transport.images
        """The (28, 28) images that were sent, oldest first."""
