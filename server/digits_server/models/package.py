"""Model packages on disk: which there are, what lies there and is none, and how one is loaded."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from digits_server.errors import ModelRefused
from digits_server.inference.cost import CostCurve
from digits_server.inference.engine import Engine, Limits
from digits_server.inference.graph import Graph
from digits_server.models import metadata, verification
from digits_server.models.verification import Reference

MODEL = "model.onnx"
FILES = (MODEL, "model.onnx.data", "bytes.onnx", "reference.npz", "golden.npz")
"""What of a package the server reads; the rest is for people."""

Fingerprint = tuple[object, ...]
"""Tells one state of a package's files from another: size, time of change and inode of each, or why it can't be had."""


MAX_REASON = 1000
"""Characters of a reason: it goes into headers of a few thousand bytes."""


def one_line(reason: str) -> str:
    """Return a reason as one line that is not too long: onnxruntime's own may have many."""
    return textwrap.shorten(reason, MAX_REASON)


class Key(NamedTuple):
    """A version of a model, as its folders are named. Versions sort as numbers."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def folder(self, root: Path) -> Path:
        """Return where its files are."""
        return root / self.name / str(self.version)


@dataclass(frozen=True)
class Package:
    """A verified model package, ready to answer."""

    key: Key
    labels: tuple[str, ...]
    test_accuracy: float
    """Share of the test images it recognises, as its maker states; 0: unknown."""
    dataset: str
    """Name of those images; empty: unknown."""
    engine: Engine
    cost: CostCurve
    """Measured on this machine, when it was loaded."""
    remark: str = ""
    """What its users should know though it serves: that nothing verifies it, or why its byte graph is not used."""

    @property
    def name(self) -> str:
        """Its model's name in requests."""
        return self.key.name

    @property
    def version(self) -> str:
        """Its version in requests."""
        return str(self.key.version)


class Contents(NamedTuple):
    """What a look at the folder of models finds."""

    packages: dict[Key, Fingerprint]
    misplaced: dict[tuple[str, str], str]
    """What looks like a model where none counts: name and version as the folders say, and what would count."""


def find(root: Path, needed: Container[str] = ()) -> Contents:
    """Return every `<name>/<version>/` under `root` that holds a model.onnx and whose version is a whole number.

    Names that begin with a dot are passed over: so copies in progress should be called. So is a file system's own
    `lost+found`.

    Args:
        root: The folder of models.
        needed: Names of models whose folders must be read: none of their versions is to be taken for removed.

    Raises:
        OSError: `root` can't be read, or the folder of a needed model.
    """
    found = Contents({}, {})
    for model in sorted(root.iterdir()):
        if model.name.startswith(".") or model.name == "lost+found" or not model.name.isprintable():
            continue
        if model.suffix == ".onnx":
            found.misplaced[model.name, ""] = f"it lies in the folder of models; {_would_count('NAME')}"
        if not model.is_dir():
            continue
        try:
            versions = sorted(folder for folder in model.iterdir() if not folder.name.startswith("."))
        except OSError as error:
            if model.name in needed:
                raise
            found.misplaced[model.name, ""] = f"its folder can't be read: {error.strerror}"
            continue
        for folder in versions:
            _look_at(folder, found)
    return found


def _look_at(folder: Path, found: Contents) -> None:
    """Add what `<name>/<version>` is to what has been found."""
    name, version, others = folder.parent.name, folder.name, _onnx_files(folder)
    if version.isascii() and version.isdecimal() and version == str(int(version)):  # one spelling each
        if state := fingerprint(folder):
            found.packages[Key(name, int(version))] = state
        elif others:
            found.misplaced[name, version] = f"the folder holds {others[0]}; {_would_count(name, version)}"
    elif folder.suffix == ".onnx":
        found.misplaced[name, ""] = f"{version} lies in {name}/; {_would_count(name)}"
    elif others:
        fault = f"{version!r} is no version: those are whole numbers without leading zeros"
        found.misplaced[name, version] = f"{fault}; {_would_count(name)}"


def _would_count(name: str, version: str = "1") -> str:
    return f"what counts is {name}/{version}/{MODEL}"


def _onnx_files(folder: Path) -> list[str]:
    """Return the names of the .onnx files in what may be a folder that can be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".onnx")
    except OSError:
        return []


def fingerprint(folder: Path) -> Fingerprint:
    """Return the fingerprint of a package's files; empty if there is no model.onnx."""
    states: list[object] = []
    for name in FILES:
        try:
            state = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            if name == MODEL:
                return ()
            states.append(None)
        except OSError as error:
            states.append(error.errno)
        else:
            states.append((state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(states)


def load(root: Path, key: Key, *, threads: int, rest: float = 0.0) -> Package:
    """Load, verify and measure a package; measuring warms it, too.

    Args:
        root: The models folder.
        key: Which package of it.
        threads: Threads of one run.
        rest: As `cost.measure`.

    Raises:
        ModelRefused: Something about it is wrong; the message says all that is.
    """
    faults: list[str] = []
    package = None
    try:
        package = _load(key.folder(root), key, threads, rest, faults)
    except ModelRefused as error:
        faults.append(str(error))
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything, a damaged graph too when it runs
        faults.append(f"package can't be read: {type(error).__name__}: {error}")
    if package is None or faults:
        raise ModelRefused("; ".join(faults))
    return package


def _load(folder: Path, key: Key, threads: int, rest: float, faults: list[str]) -> Package | None:
    """Return a package, or add to `faults` why not."""
    remarks: list[str] = []
    path = verification.find_reference(folder)
    reference = verification.read_reference(path, faults) if path else None
    floats = Graph(folder / MODEL, threads=threads)
    about = metadata.read(floats.metadata, faults)
    if path is None and about.is_trained_here:
        faults.append("reference.npz is missing, which holds the answers that prove this model right")
    elif path is None:
        remarks.append("not verified: there is no reference.npz")
    engine = Engine(floats, about.limits)
    verification.check_answers(engine, len(about.labels), reference, faults)
    if faults:
        return None
    try:
        engine = _with_byte_graph(folder, floats, engine, about.limits, reference)
    except ModelRefused as error:
        remarks.append(f"bytes.onnx is not used: {error}")
    cost, remark = engine.measure(rest), one_line("; ".join(remarks))
    return Package(key, about.labels, about.test_accuracy, about.dataset, engine, cost, remark)


def _with_byte_graph(
    folder: Path, floats: Graph, engine: Engine, limits: Limits, reference: Reference | None
) -> Engine:
    """Return the engine that answers bytes by the package's byte graph; without one, `engine`.

    Raises:
        ModelRefused: The byte graph is damaged, was made of another model.onnx, or gives other answers here.
    """
    path = folder / "bytes.onnx"
    if not path.exists():
        return engine
    pixels = Graph(path, threads=floats.threads)
    digest = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    if pixels.metadata.get("digits.derived_from") != digest:
        raise ModelRefused("it was derived from another model.onnx")
    both = Engine(floats, limits, pixels)
    try:
        fault = verification.disagreement(both, engine, verification.probes(reference))
    except Exception as error:  # a damaged graph may raise anything
        raise ModelRefused(str(error)) from error
    if fault:
        raise ModelRefused(fault)
    return both
