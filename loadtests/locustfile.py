"""Users that send MNIST test images to a Digits server as fast as it answers, and check every answer.

The objectives in `slo.toml` decide the exit status. Runs alone, or as master and workers.
"""

from __future__ import annotations

import json
import math
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.gevent
import locust.stats
import mnist
import numpy as np
import objectives
from locust import User, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

grpc.experimental.gevent.init_gevent()  # before any channel exists: a waiting call must not stop the other users

TIMEOUT_S = 5.0
IMAGES, LABELS = mnist.load()
ANSWERS = {"images": 0, "wrong": 0}
"""Answers of this process's users; of all workers', in a master."""
MODEL: dict[str, Any] = {}
"""The server's default model, which is the one under test."""


def three_digits(milliseconds: float) -> float:
    """Return the bucket of a response time. Locust's own are whole milliseconds, longer than many of our calls."""
    return float(f"{milliseconds:.3g}")


locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # typed for whole numbers, works with any


class CallFailed(Exception):
    """A call without a usable answer. Locust counts failures by this text, so it must not differ between calls."""


class DigitsUser(User):
    """Classifies random test images on a connection of its own, one call after the other."""

    abstract = True
    workload: str
    images_per_call: int

    def on_start(self) -> None:
        """Connect."""
        # Users in one process would share one connection otherwise.
        self._channel = grpc.insecure_channel(self.host or "", [("grpc.use_local_subchannel_pool", 1)])
        self._stub = pb_grpc.DigitClassifierStub(self._channel)
        self._random = np.random.default_rng()

    def on_stop(self) -> None:
        """Disconnect."""
        self._channel.close()

    @task
    def classify(self) -> None:
        """Make one call, check it and report it."""
        # Independent draws, so that the number of wrong answers is binomial.
        chosen = self._random.integers(len(IMAGES), size=self.images_per_call)
        request = pb.ClassifyRequest(pixels=IMAGES[chosen].tobytes())
        failure, length = None, 0
        start = time.perf_counter()
        try:
            response = self._stub.Classify(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            failure = CallFailed(error.code().name)
        elapsed_s = time.perf_counter() - start
        if failure is None:
            length = response.ByteSize()
            if len(response.digits) == len(chosen):
                ANSWERS["images"] += len(chosen)
                ANSWERS["wrong"] += int(np.count_nonzero(np.array(response.digits) != LABELS[chosen]))
            else:
                failure = CallFailed("number of answers differs from number of images")
        self.environment.events.request.fire(
            request_type="Classify",
            name=self.workload,
            response_time=elapsed_s * 1000,
            response_length=length,
            exception=failure,
            context={},
        )


class UnaryUser(DigitsUser):
    """One image a call, as most callers do."""

    weight = 4
    workload = "unary"
    images_per_call = 1


class BatchUser(DigitsUser):
    """Many images a call."""

    weight = 1
    workload = "batch-64"
    images_per_call = 64


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    """Add our arguments to Locust's."""
    # No Path objects: a master sends the arguments to its workers.
    slo = str(Path(__file__).with_name("slo.toml"))
    parser.add_argument("--slo", default=slo, metavar="FILE", help="Objectives that decide the exit status.")
    parser.add_argument("--results", metavar="FILE", help="Write figures and verdicts there, as JSON.")


@events.test_start.add_listener
def ask_for_model(environment: Environment, **_: Any) -> None:
    """Begin to count, and learn from the server how often its model is wrong by itself."""
    ANSWERS.update(images=0, wrong=0)
    MODEL.update(name="", version="", test_accuracy=math.nan)  # so that nothing passes if the server does not answer
    if isinstance(environment.runner, WorkerRunner):
        return
    with grpc.insecure_channel(environment.host or "") as channel:
        models = pb_grpc.DigitClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
    for model in models:  # sorted: the last of the default model is its latest version
        if model.is_default:
            MODEL.update(name=model.name, version=model.version, test_accuracy=model.test_accuracy)


@events.report_to_master.add_listener
def report_answers(data: dict[str, Any], **_: Any) -> None:
    """Hand a worker's answers to the master and begin anew."""
    data["answers"] = dict(ANSWERS)
    ANSWERS.update(images=0, wrong=0)


@events.worker_report.add_listener
def add_answers(data: dict[str, Any], **_: Any) -> None:
    """Add a worker's answers in the master."""
    for name, count in data["answers"].items():
        ANSWERS[name] += count


@events.quitting.add_listener  # not `test_stop`: a master has not heard the last of its workers by then
def judge(environment: Environment, **_: Any) -> None:
    """Compare what was measured with the objectives, tell people, and decide the exit status."""
    if isinstance(environment.runner, WorkerRunner) or not MODEL:  # or the web page was opened and no test started
        return
    options: Any = environment.parsed_options
    running = {getattr(user, "workload", "") for user in environment.user_classes} | {"answers"}
    limits = {name: limit for name, limit in objectives.read(Path(options.slo)).items() if name in running}
    figures = measure(environment)
    verdicts = objectives.judge(limits, figures)
    broken = sum(entry["count"] for entry in environment.runner.exceptions.values()) if environment.runner else 0
    passed = broken == 0 and all(verdict.passed for verdict in verdicts)

    images, wrong = ANSWERS["images"], ANSWERS["wrong"]
    print(objectives.table(verdicts))
    print(
        f"{images} images, {wrong} answers wrong ({wrong / images if images else math.nan:.2%}); "
        f"{MODEL['name']}/{MODEL['version']} by itself: {1 - MODEL['test_accuracy']:.2%}"
    )
    for error in environment.stats.errors.values():
        print(f"{error.occurrences} x {error.method} {error.name}: {error.error}")
    if broken:
        print(f"{broken} exceptions in the load test itself")
    print("PASS" if passed else "FAIL")

    environment.process_exit_code = 0 if passed else 1
    if options.results:
        results = Path(options.results)
        results.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "passed": passed,
            "model": MODEL,
            "figures": figures,
            "objectives": [vars(verdict) for verdict in verdicts],
            "errors": {f"{e.name}: {e.error}": e.occurrences for e in environment.stats.errors.values()},
        }
        result = json.loads(json.dumps(result), parse_constant=lambda _: None)  # JSON has no NaN
        results.write_text(json.dumps(result, indent=2) + "\n")


def measure(environment: Environment) -> dict[str, dict[str, float]]:
    """Return the figures that objectives can be set for."""
    figures = {}
    for entry in environment.stats.entries.values():
        figures[entry.name] = {
            "calls": entry.num_requests,
            "rate": entry.total_rps - entry.total_fail_per_sec,
            "p50_ms": entry.get_response_time_percentile(0.50),
            "p95_ms": entry.get_response_time_percentile(0.95),
            "p99_ms": entry.get_response_time_percentile(0.99),
            "error_share": entry.fail_ratio,
        }
    images, wrong = ANSWERS["images"], ANSWERS["wrong"]
    figures["answers"] = {
        "images": images,
        "wrong": wrong,
        "wrong_share": wrong / images if images else math.nan,
        "sigmas_above_model": objectives.sigmas_above(wrong, images, 1 - MODEL["test_accuracy"]),
    }
    return figures
