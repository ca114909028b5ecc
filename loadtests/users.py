"""Users that send MNIST test images to a Digits server as fast as it answers, and check every answer."""

from __future__ import annotations

import queue
import time
from typing import Any

import gevent
import grpc
import grpc.experimental.gevent
import mnist
import numpy as np
import numpy.typing as npt
from locust import User, task

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import DigitClient, DigitsError
from open_inference.v2 import inference_pb2 as oip
from open_inference.v2 import inference_pb2_grpc as oip_grpc

grpc.experimental.gevent.init_gevent()  # before any channel exists: a waiting call must not stop the other users

TIMEOUT_S = 5.0
IMAGES, LABELS = mnist.load()
ANSWERS = {"images": 0, "wrong": 0}
"""Answers of this process's users; of all workers', in a master."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class CallFailed(Exception):
    """A call without a usable answer. Locust counts failures by this text, so it must not differ between calls."""


Digits = npt.NDArray[np.integer[Any]]
"""(n,) one for each image."""


class DigitsUser(User):
    """Classifies random test images on a connection of its own, one call after the other."""

    abstract = True
    workload: str
    """Name of the calls in Locust's tables and in the objectives."""
    images_per_call = 1

    def on_start(self) -> None:
        """Connect."""
        # Users in one process would share one connection otherwise.
        self._channel = grpc.insecure_channel(self.host or "", [("grpc.use_local_subchannel_pool", 1)])
        self._stub = pb_grpc.DigitClassifierStub(self._channel)
        self._random = np.random.default_rng()

    def on_stop(self) -> None:
        """Disconnect."""
        self._channel.close()

    def ask(self, images: npt.NDArray[np.uint8]) -> Digits:
        """Make one call with (n, 784) images.

        Raises:
            CallFailed: There was no answer; the text is its status.
            grpc.RpcError: The same.
            DigitsError: The same.
        """
        response = self._stub.Classify(pb.ClassifyRequest(pixels=images.tobytes()), timeout=TIMEOUT_S)
        return np.array(response.digits)

    @task
    def classify(self) -> None:
        """Make one call, check it and report it."""
        # Independent draws, so that the number of wrong answers is binomial.
        chosen = self._random.integers(len(IMAGES), size=self.images_per_call)
        failure = None
        start = time.perf_counter()
        try:
            digits = self.ask(IMAGES[chosen])
            if len(digits) != len(chosen):
                raise CallFailed("number of answers differs from number of images")
            ANSWERS["images"] += len(chosen)
            ANSWERS["wrong"] += int(np.count_nonzero(digits != LABELS[chosen]))
        except CallFailed as error:
            failure = error
        except (grpc.RpcError, DigitsError) as error:
            failure = CallFailed(_status(error))
        elapsed_s = time.perf_counter() - start
        self.environment.events.request.fire(
            request_type="gRPC",
            name=self.workload,
            response_time=elapsed_s * 1000,
            response_length=0,
            exception=failure,
            context={},
        )


def _status(error: Any) -> str:
    code = getattr(error, "code", None)
    code = code() if callable(code) else code
    return code.name if code else type(error).__name__


class UnaryUser(DigitsUser):
    """One image a call, as most callers do."""

    weight = 4
    workload = "unary"


class BatchUser(DigitsUser):
    """Many images a call."""

    workload = "batch-64"
    images_per_call = 64


class StreamUser(DigitsUser):
    """One image a message, on one stream for as long as it goes well."""

    workload = "stream"

    def on_start(self) -> None:
        """Connect."""
        super().on_start()
        self._answers: Any = None

    def ask(self, images: npt.NDArray[np.uint8]) -> Digits:
        """Send one message and wait for its answer."""
        if self._answers is None:
            self._messages: queue.SimpleQueue[pb.ClassifyStreamRequest] = queue.SimpleQueue()
            self._answers = self._stub.ClassifyStream(iter(self._messages.get, None))
        try:
            self._messages.put(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=images.tobytes())))
            with gevent.Timeout(TIMEOUT_S, CallFailed("DEADLINE_EXCEEDED")):
                answer = next(self._answers)
        except (grpc.RpcError, CallFailed):
            self._answers.cancel()
            self._answers = None
            raise
        if answer.HasField("error"):
            raise CallFailed(CODES[answer.error.code])
        return np.array(answer.response.digits)


class InferenceUser(DigitsUser):
    """One image a call, in the tensors of the Open Inference Protocol."""

    workload = "oip"

    def on_start(self) -> None:
        """Connect, and learn the model's name, which this protocol wants in every call."""
        super().on_start()
        self._inference = oip_grpc.GRPCInferenceServiceStub(self._channel)
        models = self._stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
        self._model = next(model.name for model in models if model.is_default)

    def ask(self, images: npt.NDArray[np.uint8]) -> Digits:
        """Make one call."""
        request = oip.ModelInferRequest(
            model_name=self._model,
            inputs=[oip.ModelInferRequest.InferInputTensor(name="vectors", datatype="UINT8", shape=images.shape)],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="digits")],
            raw_input_contents=[images.tobytes()],
        )
        response = self._inference.ModelInfer(request, timeout=TIMEOUT_S)
        return np.frombuffer(response.raw_output_contents[0], np.uint8)


class SdkUser(DigitsUser):
    """One image a call through the Python client, with its retries."""

    workload = "sdk"

    def on_start(self) -> None:
        """Connect."""
        super().on_start()
        self._client = DigitClient(self.host or "", connections=1, timeout_s=TIMEOUT_S)

    def on_stop(self) -> None:
        """Disconnect."""
        self._client.close()
        super().on_stop()

    def ask(self, images: npt.NDArray[np.uint8]) -> Digits:
        """Make one call."""
        return np.array([self._client.classify(images[0]).digit])
