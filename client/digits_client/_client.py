"""The synchronous client: only the calls; what they carry is made and read elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from digits_client import _base, _channel, _codec, _requests, _results
from digits_client._arrays import Rows
from digits_client._codec import Columns
from digits_client._errors import DigitsError, PermissionDenied, Unsupported
from digits_client._reading import Number, Reading
from digits_client._requests import ImageLike
from digits_client._results import Model, Prediction, Predictions
from digits_client._transport import GrpcTransport, Transport


class DigitClient(_base.BaseClient[Transport]):
    """Recognises digits on a server. Close it, or use it in a `with` statement. Threads may share it, forks may not.

    Args:
        server: `host:port`, `[IPv6]:port`, `unix:PATH`, any other target that gRPC resolves, such as
            `dns:///digits:50051`, or a list of addresses such as `["10.0.0.1:50051", "10.0.0.2:50051"]`. Calls go to
            all addresses in turn.
        timeout_s: How long a call may take, retries included, unless the call says otherwise; at most a year.
        model: Model to ask; empty: the server's default.
        version: Version of the model; empty: the latest.
        connections: Connections to each address. Each of a server's processes serves those that it was given; several
            connections reach several processes.
        tls: Encrypts; None: plain text.
        token: Sent as a bearer token with each call, without the white space around it; without `tls` anybody on the
            way can read it.
        interceptors: grpc's client interceptors, such as OpenTelemetry's; of grpc.aio for an `AsyncDigitClient`.
        transport: Carries the calls instead of grpc, as `digits_client.testing.FakeTransport` does.

    Raises:
        ValueError: An argument, or a file of `tls`, can't be used; it is named, with the value and what is allowed.
        OSError: A file of `tls` can't be read.
    """

    _transport: Transport

    def classify(self, image: ImageLike, *, timeout_s: float | None = None) -> Prediction:
        """Return what one image shows.

        Args:
            image: A path, bytes of a PNG or JPEG, a PIL image, or an array or list of 784 numbers, in the shapes
                (784,), (28, 28) or (28, 28, 1): integers in 0 to 255, bool, or floats in 0 to 1, ink bright. Pictures
                are prepared as MNIST was; arrays are taken as they are.
            timeout_s: Instead of the client's.

        Raises:
            InvalidImage: The image can't be read.
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        return self._classify(_requests.prepare(image), timeout_s)[0]

    def read(self, image: ImageLike, *, timeout_s: float | None = None) -> Number:
        """Return the number of one or more digits that a picture shows, in reading order; one call to the server.

        Digits that touch are cut apart where the model says so, and marked `is_touching`.

        Args:
            image: A path, bytes of a PNG or JPEG, or a PIL image.
            timeout_s: Instead of the client's.

        Raises:
            InvalidImage: The picture can't be read, or shows nothing.
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        reading = Reading(image)
        return reading.number(self._classify(reading.rows, timeout_s))

    def classify_many(
        self, images: npt.NDArray[np.generic] | Iterable[ImageLike], *, timeout_s: float | None = None
    ) -> Predictions:
        """Return what many images show, as columns, in order.

        Args:
            images: An array of shape (n, 784), (n, 28, 28) or (n, 28, 28, 1), or any number of what `classify` takes.
            timeout_s: For each call that this makes, one for 1,024 images, instead of the client's.

        Raises:
            InvalidImage: An image can't be read, or there are none.
            CallError: A call failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        timeout_s = self._timeout(timeout_s)
        portions = _requests.portions(_requests.rows(images))
        requests = (_requests.request(portion, self._options) for portion in portions)
        answers = self._usable().calls(_channel.CLASSIFY, requests, timeout_s)
        columns = [_codec.columns(answer, len(portion)) for answer, portion in zip(answers, portions, strict=True)]
        return _results.joined(columns, self._classes(columns[-1], time.monotonic() + timeout_s))

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
            InvalidImage: `images` can't be iterated, or is one image.
            CallError: The stream itself failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        stream = _requests.Stream(self._options)
        failures: list[BaseException] = []
        given = _requests.each(images)

        def requests() -> Iterator[bytes]:
            try:
                for image in given:
                    yield stream.request(image)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it belongs to the stream's caller
                failures.append(error)

        timeout_s = self._timeout(_base.STREAM_TIMEOUT_S if timeout_s is None else timeout_s)
        for answer in self._usable().stream(requests(), timeout_s):
            result = stream.result(answer)
            if isinstance(result, DigitsError):
                yield result
            else:
                yield next(_results.each(result, self._classes(result, time.monotonic() + self._timeout_s)))
        for failure in failures:
            raise failure

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the models that the server knows, sorted by name and version.

        Raises:
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        return _results.models(self._call(_channel.LIST_MODELS, b"", timeout_s))

    def health(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server is ready to answer.

        Raises:
            CallError: The call failed; the class tells how.
            ClientClosed: The client was closed.
            ValueError: `timeout_s` can't be kept.
        """
        return _results.is_serving(self._call(_channel.CHECK, b"", timeout_s))

    def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Transport:
        return GrpcTransport(self._connection)

    def _usable(self) -> Transport:
        self._check_usable()
        return self._transport

    def _call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        return self._usable().call(method, request, self._timeout(timeout_s))

    def _classify(self, rows: Rows, timeout_s: float | None) -> list[Prediction]:
        """Return what (n, 784) images show, of one call."""
        seconds = self._timeout(timeout_s)
        end_s = time.monotonic() + seconds
        answer = self._usable().call(_channel.CLASSIFY, _requests.request(rows, self._options), seconds)
        columns = _codec.columns(answer, len(rows))
        return list(_results.each(columns, self._classes(columns, end_s)))

    def _classes(self, answer: Columns, end_s: float) -> tuple[str, ...]:
        """Return the labels of the version that answered; the first time, ask for them, until `end_s`, monotonic."""
        known = self._labels.get(answer)
        if known is None:
            try:
                listed = self.models(timeout_s=max(end_s - time.monotonic(), _base.MIN_TIMEOUT_S))
            except (PermissionDenied, Unsupported):  # then classes go by their numbers
                listed = []
            known = self._labels.learn(answer, listed)
        return known
