"""The synchronous client: only the calls; what they carry is made and read elsewhere."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from digits_client import _images, _messages, _plan, _settings, _wire
from digits_client._errors import DigitsError, from_rpc_error
from digits_client._images import ImageLike
from digits_client._messages import Model, Prediction, Predictions


class DigitClient(_settings.BaseClient):
    """Recognises digits on a server. Close it, or use it in a `with` statement. Threads may share it, forks may not.

    Args:
        server: `host:port`, or any target that gRPC resolves, such as `dns:///digits:50051`, or a list of addresses
            such as `["10.0.0.1:50051", "10.0.0.2:50051"]`. Calls go to all addresses in turn.
        timeout_s: How long a call may take, retries included, unless the call says otherwise.
        model: Model to ask; empty: the server's default.
        version: Version of the model; empty: the latest.
        connections: Connections to each address. Each of a server's processes serves those that it was given; several
            connections reach several processes.
        tls: Encrypts; None: plain text.
        token: Sent as a bearer token with each call; without `tls` anybody on the way can read it.

    Raises:
        ValueError: An argument, or a file of `tls`, can't be used; it is named, with the value and what is allowed.
        OSError: A file of `tls` can't be read.
    """

    def classify(self, image: ImageLike, *, timeout_s: float | None = None) -> Prediction:
        """Return what one image shows.

        Args:
            image: A path, bytes of a PNG or JPEG, a PIL image, or a (28, 28) or (784,) array: uint8 in 0 to 255 or
                floats in 0 to 1, ink bright. Pictures are prepared as MNIST was; arrays are taken as they are.
            timeout_s: Instead of the client's.

        Raises:
            InvalidImage: The image can't be read.
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
        """
        data, is_float = _plan.encoded(_images.prepare(image))
        request = _wire.request(self._options, data, is_float=is_float)
        return next(_messages.each(_wire.columns(self._ask(_settings.CLASSIFY, request, timeout_s), 1)))

    def classify_many(
        self, images: npt.NDArray[np.generic] | Iterable[ImageLike], *, timeout_s: float | None = None
    ) -> Predictions:
        """Return what many images show, as columns, in order.

        Args:
            images: An (n, 784) or (n, 28, 28) array, or any number of what `classify` takes.
            timeout_s: For each call that this makes, one for 1,024 images, instead of the client's.

        Raises:
            InvalidImage: An image can't be read, or there are none.
            CallError: A call failed; the class tells how.
            ClientClosed: The client was closed.
        """
        answers: list[_wire.Columns] = []
        pending: deque[tuple[Any, int]] = deque()
        try:
            for request, count in _plan.requests(_images.rows(images), self._options):
                pending.append((self._begin(_settings.CLASSIFY, request, timeout_s), count))
                if len(pending) == _plan.CALLS_AT_ONCE:
                    answers.append(self._finish(*pending.popleft()))
            while pending:
                answers.append(self._finish(*pending.popleft()))
        finally:
            for call, _ in pending:
                call.cancel()
        return _messages.joined(answers)

    def stream(
        self, images: Iterable[ImageLike], *, timeout_s: float | None = None
    ) -> Iterator[Prediction | DigitsError]:
        """Yield what each image shows, in order, while further images are still being read.

        An image that can't be read, or that the server refuses, has its error *yielded* in its place, and the stream
        goes on. `images` is iterated in another thread; what it raises ends the stream and is raised here.

        Args:
            images: What `classify` takes, any number, also without an end.
            timeout_s: For the whole stream; None: an hour.

        Raises:
            CallError: The stream itself failed; the class tells how.
            ClientClosed: The client was closed.
        """
        stream = _plan.Stream(self._options)
        failures: list[BaseException] = []

        def requests() -> Iterator[bytes]:
            try:
                for image in images:
                    yield stream.request(image)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it belongs to the stream's caller
                failures.append(error)

        timeout_s = _settings.STREAM_TIMEOUT_S if timeout_s is None else timeout_s
        for answer in self._ask_stream(requests(), timeout_s):
            yield stream.result(answer)
        for failure in failures:
            raise failure

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the models that the server knows, sorted by name and version.

        Raises:
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
        """
        return _messages.models(self._ask(_settings.LIST_MODELS, b"", timeout_s))

    def health(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server is ready to answer.

        Raises:
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
        """
        return _messages.is_serving(self._ask(_settings.CHECK, b"", timeout_s))

    def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        credentials, options = self._credentials, self._channel_options
        self._channels = [
            grpc.secure_channel(self._target, credentials, options)
            if credentials
            else grpc.insecure_channel(self._target, options)
            for _ in range(self._connections)
        ]
        if self._tracing:
            spans = self._tracing.Interceptor(self._target)
            self._channels = [grpc.intercept_channel(channel, spans) for channel in self._channels]
        self._callables: Iterator[dict[str, Any]] = itertools.cycle([_settings.callables(it) for it in self._channels])

    def _ask(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        self._check_usable()
        try:
            answer: bytes = next(self._callables)[method](
                request, timeout=self._timeout(timeout_s), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return answer

    def _begin(self, method: str, request: bytes, timeout_s: float | None) -> Any:
        self._check_usable()
        return next(self._callables)[method].future(request, timeout=self._timeout(timeout_s), metadata=self._metadata)

    def _finish(self, call: Any, count: int) -> _wire.Columns:
        try:
            return _wire.columns(call.result(), count)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _ask_stream(self, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
        self._check_usable()
        call = next(self._callables)[_settings.CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # where the caller left early; afterwards it does nothing
