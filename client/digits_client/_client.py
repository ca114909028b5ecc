"""The synchronous client: only the calls; what they carry is made and read elsewhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import _images, _messages
from digits_client._errors import from_rpc_error
from digits_client._images import ImageLike
from digits_client._messages import Model, Prediction, Predictions

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 5.0
ROWS_PER_CALL = 1024
"""Images in one call of `classify_many`: 0.8 MB of pixels, 3.2 MB of floats; servers accept 4 MB."""

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "digits.v1.DigitClassifier"}],
            "retryPolicy": {  # gRFC A6; all calls are reads, so a second try does no harm
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},  # a dead server must not be buried under retries
}


class DigitClient:
    """Recognises digits on a server. Close it, or use it in a `with` statement. Threads may share it.

    Args:
        server: `host:port`, or any target that gRPC resolves, such as `dns:///digits:50051`.
        timeout_s: How long a call may take, retries included, unless the call says otherwise.
        model: Model to ask; empty: the server's default.
        version: Version of the model; empty: the latest.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        model: str = "",
        version: str = "",
    ) -> None:
        self._timeout_s = timeout_s
        self._model = model
        self._version = version
        self._channel = grpc.insecure_channel(
            server,
            options=[
                ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
                ("grpc.enable_retries", 1),
            ],
        )
        self._stub = pb_grpc.DigitClassifierStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)  # its stub file lacks the methods

    def classify(self, image: ImageLike, *, timeout_s: float | None = None) -> Prediction:
        """Return what one image shows.

        Args:
            image: A path, bytes of a PNG or JPEG, a PIL image, or a (28, 28) or (784,) array: uint8 in 0 to 255 or
                floats in 0 to 1, ink bright. Pictures are prepared as MNIST was; arrays are taken as they are.
            timeout_s: Instead of the client's.

        Raises:
            InvalidImage: The image can't be read.
            CallError: The call failed; the class tells how.
        """
        request = _messages.request(_images.row(image), self._model, self._version)
        return _messages.prediction(self._call(self._stub.Classify, request, timeout_s))

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
        """
        rows = _images.rows(images)
        return _messages.predictions(
            [
                self._call(
                    self._stub.Classify,
                    _messages.request(rows[start : start + ROWS_PER_CALL], self._model, self._version),
                    timeout_s,
                )
                for start in range(0, len(rows), ROWS_PER_CALL)
            ]
        )

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the models that the server knows, sorted by name and version.

        Raises:
            CallError: The call failed; the class tells how.
        """
        return _messages.models(self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s))

    def health(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server is ready to answer.

        Raises:
            CallError: The call failed; the class tells how.
        """
        answer = self._call(self._health.Check, health_pb2.HealthCheckRequest(), timeout_s)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with _translated():
            return method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
