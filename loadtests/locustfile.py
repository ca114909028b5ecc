"""What Locust loads: the users, the shapes of the load, and what decides whether it has passed.

Runs alone, or as master and workers.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import locust.stats
import objectives
import report
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from shapes import LEVELS, Ramp, Soak, Spike
from users import ANSWERS, TIMEOUT_S, BatchUser, InferenceUser, SdkUser, StreamUser, UnaryUser

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

__all__ = ["BatchUser", "InferenceUser", "Ramp", "SdkUser", "Soak", "Spike", "StreamUser", "UnaryUser"]

MODEL: dict[str, Any] = {}
"""The server's default model, which is the one under test."""
SHAPES = {"steady": None, "ramp": Ramp, "spike": Spike, "soak": Soak}


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add our arguments to Locust's."""
    add = partial(parser.add_argument, include_in_web_ui=False)  # the page has its own list of shapes
    # No Path objects: a master sends the arguments to its workers.
    slo = str(Path(__file__).with_name("slo.toml"))
    add("--shape", choices=list(SHAPES), default="steady", help="Shape of the load.")
    add("--slo", default=slo, metavar="FILE", help="Objectives that decide the exit status.")
    add("--results", metavar="FILE", help="Write figures and verdicts there, as JSON.")
    add("--plot", metavar="FILE", help="Draw the levels of a ramp there, as PNG.")
    add("--server-metrics", metavar="URL", help="The server's metrics page: watch the memory of all its processes.")


@events.init.add_listener
def choose_shape(environment: Environment, **_: Any) -> None:
    """Take the shape that was asked for; Locust by itself takes the first that it finds."""
    options: Any = environment.parsed_options
    shape = SHAPES[options.shape]
    environment.shape_class = shape() if shape and not isinstance(environment.runner, WorkerRunner) else None
    if environment.shape_class:
        environment.shape_class.runner = environment.runner


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
            MODEL.update(
                name=model.name, version=model.version, test_accuracy=model.test_accuracy or math.nan
            )  # 0: not known


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
    run = {"shape": options.shape, "users": options.num_users, "run_time_s": options.run_time}
    figures = measure(environment)
    running = {getattr(user, "workload", "") for user in environment.user_classes} | (figures.keys() & {"server"})
    limits = {
        name: limit
        for name, limit in objectives.read(Path(options.slo)).items()
        if name == "answers" or name in running
    }
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
    if LEVELS:
        is_ramp = isinstance(environment.shape_class, Ramp)
        print(report.table(LEVELS, mark_saturation=is_ramp))
        if options.plot and is_ramp:
            report.plot(LEVELS, Path(options.plot))
    print("PASS" if passed else "FAIL")
    locust.stats.console_logger.disabled = True  # Locust's own last table says less

    environment.process_exit_code = 0 if passed else 1
    if options.results:
        results = Path(options.results)
        results.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "passed": passed,
            "run": run,
            "model": MODEL,
            "figures": figures,
            "levels": LEVELS,
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
    if LEVELS and "memory_mb" in LEVELS[0]:
        memory_mb = [level["memory_mb"] for level in LEVELS]
        figures["server"] = {"memory_mb": memory_mb[-1], "memory_growth_mb": memory_mb[-1] - memory_mb[0]}
    return figures
