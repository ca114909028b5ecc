"""Users that send MNIST test images to a Digits server as fast as it answers, and check every answer."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass
class Answer:
    """What a server said."""

    digits: npt.NDArray[np.integer[Any]]
    """(n,) one for each image."""
    phases_s: Mapping[str, float]
    """Where the server says that its time went."""
    length: int = 0
    """Bytes, where that is known."""


def phases(timing: pb.Timing) -> dict[str, float]:
    """Return the phases of a Digits answer."""
    return {"queue": timing.queue_seconds, "inference": timing.inference_seconds}


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

    def ask(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Make one call with (n, 784) images.

        Raises:
            CallFailed: There was no answer; the text is its status.
            grpc.RpcError: The same.
            DigitsError: The same.
        """
        response = self._stub.Classify(pb.ClassifyRequest(pixels=images.tobytes()), timeout=TIMEOUT_S)
        return Answer(np.array(response.digits), phases(response.timing), response.ByteSize())

    @task
    def classify(self) -> None:
        """Make one call, check it and report it."""
        # Independent draws, so that the number of wrong answers is binomial.
        chosen = self._random.integers(len(IMAGES), size=self.images_per_call)
        answer, failure = None, None
        start = time.perf_counter()
        try:
            answer = self.ask(IMAGES[chosen])
        except CallFailed as error:
            failure = error
        except (grpc.RpcError, DigitsError) as error:
            failure = CallFailed(_status(error))
        elapsed_s = time.perf_counter() - start
        if answer and len(answer.digits) != len(chosen):
            answer, failure = None, CallFailed("number of answers differs from number of images")
        if answer:
            ANSWERS["images"] += len(chosen)
            ANSWERS["wrong"] += int(np.count_nonzero(answer.digits != LABELS[chosen]))
            for phase, spent_s in answer.phases_s.items():  # not as requests: they would count in the totals
                self.environment.stats.get(f"{self.workload} {phase}", "server").log(spent_s * 1000, 0)  # type: ignore[arg-type]
        self.environment.events.request.fire(
            request_type="gRPC",
            name=self.workload,
            response_time=elapsed_s * 1000,
            response_length=answer.length if answer else 0,
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

    def ask(self, images: npt.NDArray[np.uint8]) -> Answer:
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
        return Answer(np.array(answer.response.digits), phases(answer.response.timing), answer.ByteSize())


class InferenceUser(DigitsUser):
    """One image a call, in the tensors of the Open Inference Protocol."""

    workload = "oip"

    def on_start(self) -> None:
        """Connect, and learn the model's name, which this protocol wants in every call."""
        super().on_start()
        self._inference = oip_grpc.GRPCInferenceServiceStub(self._channel)
        models = self._stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
        self._model = next(model.name for model in models if model.is_default)

    def ask(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Make one call."""
        request = oip.ModelInferRequest(
            model_name=self._model,
            inputs=[oip.ModelInferRequest.InferInputTensor(name="vectors", datatype="UINT8", shape=images.shape)],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="digits")],
            raw_input_contents=[images.tobytes()],
        )
        response = self._inference.ModelInfer(request, timeout=TIMEOUT_S)
        spent = {name: response.parameters[f"{name}_seconds"].double_param for name in ("queue", "inference")}
        return Answer(np.frombuffer(response.raw_output_contents[0], np.uint8), spent, response.ByteSize())


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

    def ask(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Make one call."""
        prediction = self._client.classify(images[0])
        spent = {"queue": prediction.timing.queue_s, "inference": prediction.timing.inference_s}
        return Answer(np.array([prediction.digit]), spent)
