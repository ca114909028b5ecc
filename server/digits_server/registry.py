"""Model packages on disk, verified before they may answer, and which of them a request means."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from digits.v1 import classifier_pb2 as pb
from digits_server.batcher import Batcher
from digits_server.engine import CostCurve, Engine, Images, Limits, Predictions
from digits_server.errors import ModelRefused, NotFound, quoted

log = logging.getLogger(__name__)

GOLDEN_TOLERANCE = 1e-4
"""Largest difference from the package's own answers. Exports agree to 1e-5; other CPUs add up in another order."""


@dataclass(frozen=True)
class Package:
    """A verified model package, ready to answer."""

    name: str
    version: str
    labels: tuple[str, ...]
    test_accuracy: float
    """Share of the MNIST test images it recognises, as its maker states."""
    engine: Engine
    cost: CostCurve
    """Measured on this machine, now."""


@dataclass(frozen=True)
class ServedModel:
    """A package with the batcher that feeds it."""

    package: Package
    batcher: Batcher[Images, Predictions]

    @cached_property
    def signature(self) -> bytes:
        """Name and version as fields of a serialized `ClassifyResponse`."""
        return pb.ClassifyResponse(model=self.package.name, version=self.package.version).SerializeToString()


@dataclass(frozen=True)
class RefusedModel:
    """A package that did not pass verification."""

    name: str
    version: str
    reason: str


def load_package(folder: Path, *, threads: int) -> Package:
    """Load, verify and measure the package in `folder`, which is `<name>/<version>`.

    Raises:
        ModelRefused: Something about it is wrong; the message says what.
    """
    try:
        engine = Engine(folder / "model.onnx", threads=threads, limits=_limits)
        metadata = engine.metadata
        labels = tuple(json.loads(metadata["digits.labels"]))
        test_accuracy = float(json.loads(metadata["digits.training"])["test_accuracy"])
        with np.load(folder / "golden.npz") as golden:
            inputs, expected = golden["inputs"], golden["probabilities"]
    except ModelRefused:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ModelRefused(f"package can't be read: {type(error).__name__}: {error}") from error
    if inputs.dtype != np.uint8 or inputs.shape[1:] != (784,) or expected.shape != (len(inputs), len(labels)):
        raise ModelRefused(
            f"golden.npz has inputs {inputs.dtype} {inputs.shape} and probabilities {expected.shape}; allowed are "
            f"uint8 (n, 784) and (n, {len(labels)})"
        )
    difference = np.abs(engine.predict([inputs]).probabilities - expected).max()
    if not difference <= GOLDEN_TOLERANCE:  # also refuses NaN
        raise ModelRefused(f"answers differ from the golden ones by {difference:.2g}; allowed is {GOLDEN_TOLERANCE:g}")
    return Package(folder.parent.name, folder.name, labels, test_accuracy, engine, engine.measure())


def _limits(metadata: Mapping[str, str]) -> Limits:
    abstain = json.loads(metadata["digits.abstain"])
    ink = json.loads(metadata["digits.reference"])["ink_histogram"]["edges"]
    return Limits(abstain["confidence"], abstain.get("outlier_score", float("inf")), (ink[0], ink[-1]))


class Registry:
    """The models that are served, by name and version. The highest version is the latest.

    Args:
        default_model: Name of the model that requests without one mean; if only one model is served, it is that one.
        batcher: Makes the batcher that feeds a package.
    """

    def __init__(self, default_model: str, batcher: Callable[[Package], Batcher[Images, Predictions]]) -> None:
        self._default_model = default_model
        self._batcher = batcher
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._by_request: dict[tuple[str, str], ServedModel] = {}  # what a request names, "" for what it leaves out
        self.refused: list[RefusedModel] = []

    def load(self, root: Path, *, threads: int) -> None:
        """Load every `<name>/<version>` folder under `root` whose version is a whole number.

        Raises:
            ModelRefused: There is nothing to serve, or no default among what there is.
        """
        for model in sorted(root.glob("*/*/model.onnx")):
            folder = model.parent
            if not folder.name.isdecimal():
                continue
            try:
                package = load_package(folder, threads=threads)
            except ModelRefused as error:
                refused = RefusedModel(folder.parent.name, folder.name, str(error))
                log.warning("model refused", extra={"refused": asdict(refused)})
                self.refused.append(refused)
            else:
                self._models.setdefault(package.name, {})[int(package.version)] = self._serve(package)
        if not self._models:
            raise ModelRefused(f"{root} holds no model that can be served (looked for <name>/<version>/model.onnx)")
        if len(self._models) == 1:
            self._default_model = next(iter(self._models))
        elif self._default_model not in self._models:
            raise ModelRefused(f"the default model {self._default_model!r} is not among {sorted(self._models)}")
        for name, versions in self._models.items():
            names = (name, "") if name == self._default_model else (name,)
            for asked in names:
                self._by_request[asked, ""] = versions[max(versions)]
                self._by_request |= {(asked, str(number)): served for number, served in versions.items()}

    def _serve(self, package: Package) -> ServedModel:
        log.info(
            "model loaded",
            extra={
                "model": package.name,
                "version": package.version,
                "alone_us": round(package.cost(1) * 1e6, 1),
                "best_batch_size": package.cost.best_batch_size(),
                "verdict": f"batching helps {package.cost.batching_gain:.1f}x",
            },
        )
        return ServedModel(package, self._batcher(package))

    def get(self, name: str = "", version: str = "") -> ServedModel:
        """Return the model that a request means; empty: the default model, the latest version.

        Raises:
            NotFound: It is not served.
        """
        served = self._by_request.get((name, version))
        if served is not None:
            return served
        versions = self._models.get(name or self._default_model)
        if versions is None:
            raise NotFound(f"model: {quoted(name)} is not served; there are {sorted(self._models)}")
        raise NotFound(
            f"version: {name or self._default_model} has no version {quoted(version)}; there are "
            f"{[str(number) for number in sorted(versions)]}"
        )

    def all(self) -> list[ServedModel]:
        """Return every served version, sorted by name and version."""
        return [versions[number] for _, versions in sorted(self._models.items()) for number in sorted(versions)]

    @property
    def names(self) -> list[str]:
        """Names of the served models, sorted."""
        return sorted(self._models)

    def close(self) -> None:
        """Fail what still waits for any model."""
        for served in self.all():
            served.batcher.close()
