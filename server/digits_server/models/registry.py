"""Which models are served, which of them a request means, and what is known of the versions that are not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from digits.v1 import classifier_pb2 as pb
from digits_server.errors import ModelRefused, NotFound, NotReady, quoted
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Images, Predictions
from digits_server.models.canary import RecentImages
from digits_server.models.package import Key, Package, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A package with the batcher that feeds it."""

    package: Package
    batcher: Batcher[Images, Predictions]
    retired: Callable[[], None] = lambda: None
    """To be called when it serves no more: takes it out of the metrics."""
    recent: RecentImages = field(default_factory=lambda: RecentImages(0))
    """Images that it has answered recently."""


@dataclass(frozen=True)
class Note:
    """What is known of a version, or of files that were put in its place, and does not serve."""

    state: pb.ModelState.ValueType
    reason: str = ""


class Registry:
    """The models that are served, by name and version. The highest version is the latest.

    Lives on the event loop. Each change takes effect in one step; requests in flight finish on the version they
    began with, which is freed when the last of them is done: nothing else refers to it.

    Args:
        default_model: Name of the model that requests without one mean.
        make: Makes of a package what serves it.
    """

    def __init__(self, default_model: str, make: Callable[[Package], ServedModel]) -> None:
        self._default_model = default_model
        self._make = make
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._by_request: dict[tuple[str, str], ServedModel] = {}  # what a request names, "" for what it leaves out
        self.notes: dict[Key, Note] = {}
        """Versions that are being loaded or have been refused."""
        self.misplaced: Mapping[tuple[str, str], str] = {}
        """Names and versions of what looks like models where none count, and what would."""

    def serve(self, package: Package) -> None:
        """Answer with a package from now on, in place of an older one of the same name and version."""
        versions = self._models.setdefault(package.name, {})
        if package.key.version in versions:
            versions[package.key.version].retired()
        versions[package.key.version] = self._make(package)
        self.notes.pop(package.key, None)
        self._route()
        log.log(
            logging.WARNING if package.remark else logging.INFO,
            "model loaded",
            extra={
                "model": package.name,
                "version": package.version,
                "alone_us": round(package.cost(1) * 1e6, 1),
                "best_batch_size": package.cost.best_batch_size(),
                "batching": package.cost.summary,
                "remark": package.remark,
            },
        )

    def refuse(self, key: Key, reason: str) -> None:
        """Remember why a version does not serve. One that is served in its place goes on."""
        reason = one_line(reason)
        self.notes[key] = Note(pb.MODEL_STATE_REFUSED, reason)
        log.warning("model refused", extra={"model": key.name, "version": str(key.version), "reason": reason})

    def misplace(self, found: Mapping[tuple[str, str], str]) -> None:
        """Remember what lies where no model counts; what is new there is logged, once."""
        for (name, version), reason in found.items():
            if self.misplaced.get((name, version)) != reason:
                log.warning("no model", extra={"model": name, "version": version, "reason": reason})
        self.misplaced = found

    def remove(self, key: Key) -> bool:
        """Forget a version whose files are gone, and return whether it is forgotten.

        The last version of the default model stays: requests that name no model must have an answer.
        """
        self.notes.pop(key, None)
        versions = self._models.get(key.name, {})
        if key.version in versions:
            if len(versions) == 1 and key.name == self._default_model:
                return False
            versions.pop(key.version).retired()
            if not versions:
                del self._models[key.name]
            self._route()
            log.info("model removed", extra={"model": key.name, "version": str(key.version)})
        return True

    def _route(self) -> None:
        by_request = {}
        for name, versions in self._models.items():
            for asked in (name, "") if name == self._default_model else (name,):
                by_request[asked, ""] = versions[max(versions)]
                by_request |= {(asked, str(number)): served for number, served in versions.items()}
        self._by_request = by_request

    def settle_default(self, root: Path) -> None:
        """Make the only model of the folder `root` the default one, whatever its name, where there is one.

        Raises:
            ModelRefused: The default model is not served.
        """
        if len(self._models) == 1:
            self._default_model = next(iter(self._models))
            self._route()
        faults = "".join(f"; {name}/{version} was refused: {reason}" for (name, version), reason in self.faults.items())
        if not self._models:
            raise ModelRefused(f"{root} holds no model that can be served, at <name>/<version>/model.onnx{faults}")
        if not self.has_default:
            raise ModelRefused(f"the default model {self._default_model!r} is not among {self.names}{faults}")

    @property
    def has_default(self) -> bool:
        """Whether requests that name no model get an answer."""
        return self._default_model in self._models

    def get(self, name: str = "", version: str = "") -> ServedModel:
        """Return the model that a request means; empty: the default model, the latest version.

        Raises:
            NotFound: It is not served.
            NotReady: The default model is still to come.
        """
        served = self._by_request.get((name, version))
        if served is not None:
            return served
        name = name or self._default_model
        faults = [
            f"{f'version {refused}' if refused else 'what is there'} was refused: {reason}"
            for (model, refused), reason in self.faults.items()
            if model == name and (not version or refused == version)
        ][-1:]  # the latest is enough
        if name in self._models:
            there_are = f"there are {[str(number) for number in sorted(self._models[name])]}"
            raise NotFound(f"version: {name} has no version {quoted(version)}; {'; '.join([*faults, there_are])}")
        if not self.has_default:
            raise NotReady(f"the server waits for its default model, {self._default_model!r}; it serves {self.names}")
        raise NotFound(f"model: {quoted(name)} is not served; {'; '.join([*faults, f'there are {self.names}'])}")

    @property
    def faults(self) -> dict[tuple[str, str], str]:
        """Why what is on disk does not serve, by name and version as the folders say."""
        refused = sorted(key for key, note in self.notes.items() if note.state == pb.MODEL_STATE_REFUSED)
        return {(key.name, str(key.version)): self.notes[key].reason for key in refused} | dict(self.misplaced)

    def all(self) -> list[ServedModel]:
        """Return every served version, sorted by name and version."""
        return [versions[number] for _, versions in sorted(self._models.items()) for number in sorted(versions)]

    def latest(self, name: str) -> ServedModel | None:
        """Return the highest version of a model that is served."""
        return self._by_request.get((name, ""))

    @property
    def names(self) -> list[str]:
        """Names of the served models, sorted."""
        return sorted(self._models)

    def close(self) -> None:
        """Fail what still waits for any model."""
        for served in self.all():
            served.batcher.close()
