"""Recipes: everything that tells one training from another, read from a TOML file and checked at birth.

No TensorFlow here, so that listing and checking recipes is instant. A recipe is data; nothing elsewhere may ask for
a recipe's name.
"""

from __future__ import annotations

import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
from cattrs.v import transform_error

from digits_export.data import Fault
from digits_export.deform import Deformation

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(Fault, ValueError):
    """A recipe that can't be trained: the message names the field, its value and what is allowed."""


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value!r}, allowed: {allowed}")


@dataclass(frozen=True)
class Layer:
    """One hidden layer; each kind reads the fields that concern it."""

    kind: str
    """`dense`, `conv` (padded, batch-normalised, ReLU), `dropout` or `flatten`."""
    units: int = 0
    """Neurons of a dense layer or filters of a convolution."""
    rate: float = 0.0
    """Dropout rate."""
    kernel: int = 3
    """Side of a convolution's window in pixels."""
    stride: int = 1
    """Step of that window; 2 halves each side of the image."""
    l2: float = 0.0
    """Weight penalty of a dense layer."""

    def __post_init__(self) -> None:
        _require(
            self.kind in {"dense", "conv", "dropout", "flatten"}, "kind", self.kind, "dense, conv, dropout, flatten"
        )
        _require(self.kind in {"dropout", "flatten"} or self.units > 0, f"{self.kind}.units", self.units, "1 or more")
        _require(0 <= self.rate < 1, "rate", self.rate, "0 <= rate < 1")
        _require(self.kernel > 0, "kernel", self.kernel, "1 or more")
        _require(self.stride > 0, "stride", self.stride, "1 or more")
        _require(self.l2 >= 0, "l2", self.l2, "0 or more")


@dataclass(frozen=True)
class Network:
    """Hidden layers between the 784 pixels and the softmax over ten digits, which every recipe has."""

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...] = (784,)
    """How the network wants an image: (784,), (28, 28) or (28, 28, 1). What is served takes 784 whatever this says."""

    def __post_init__(self) -> None:
        allowed = {(784,), (28, 28), (28, 28, 1)}
        _require(self.input_shape in allowed, "input_shape", list(self.input_shape), "[784], [28, 28] or [28, 28, 1]")


@dataclass(frozen=True)
class Fit:
    """How the weights are found: Adam, for so many epochs, on such a schedule."""

    epochs: int = 10
    last_epochs: int = 0
    """So many of these, at the end, under `last_deformation`: real digits are less deformed than those that teach."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    """The highest rate of the run."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate climbs from a hundredth to `learning_rate`."""
    cosine: bool = False
    """Whether the rate then falls along a half cosine to zero; else it stays."""
    integer_labels: bool = False
    """Whether digits are told as integers with sparse cross-entropy, instead of as one-hot rows."""
    averaging: float = 0.0
    """Momentum of the running average of the weights that ends up in the model; 0 takes the last weights."""
    validation_share: float = 0.1
    """Part of the 60,000 training images held back for every choice made before the test."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "epochs", self.epochs, "1 or more")
        _require(0 <= self.last_epochs <= self.epochs, "last_epochs", self.last_epochs, "0 <= last_epochs <= epochs")
        _require(self.batch_size > 0, "batch_size", self.batch_size, "1 or more")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        _require(
            0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, "0 <= warmup_epochs < epochs"
        )
        _require(0 <= self.averaging < 1, "averaging", self.averaging, "0 <= averaging < 1")
        _require(0 < self.validation_share < 1, "validation_share", self.validation_share, "0 < validation_share < 1")


@dataclass(frozen=True)
class Foreign:
    """What is learnt beside MNIST's own digits, so that other people's are read as well."""

    drawn: int = 0
    """Digits drawn by code (`strokes`) that join the training images."""
    scribbled: int = 0
    """Letters, signs and scribbles drawn by code (`scribbles`) that join them, each digit being as likely as any."""
    touching: int = 0
    """Touching digits, made of the training images, that join them, each digit again being as likely as any."""
    damaged: float = 0.0
    """Share of the images that are damaged (`damage`) after they are deformed, drawn anew each epoch."""

    def __post_init__(self) -> None:
        _require(self.drawn >= 0, "drawn", self.drawn, "0 or more")
        _require(self.scribbled >= 0, "scribbled", self.scribbled, "0 or more")
        _require(self.touching >= 0, "touching", self.touching, "0 or more")
        _require(0 <= self.damaged <= 1, "damaged", self.damaged, "0 to 1")


@dataclass(frozen=True)
class Recipe:
    """One training, complete: the same recipe on the same machine gives the same network."""

    name: str
    summary: str
    network: Network
    seed: int = 0
    fit: Fit = field(default_factory=Fit)
    deformation: Deformation = field(default_factory=Deformation)
    last_deformation: Deformation = field(default_factory=Deformation)
    """Takes the place of `deformation` in the last `fit.last_epochs` epochs."""
    foreign: Foreign = field(default_factory=Foreign)
    start: str = ""
    """Recipe of the same network whose trained weights this training begins with; it is trained first. Empty: none."""
    kept: float = 0.0
    """Share of the start's weights in the mean, with those that this training ends in, that becomes the model.

    It keeps what the start knew and most of what is new (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models").
    """
    first_layer_bits: int = 0
    """Width of the integers, sign included, on whose grid the first layer's weights are put; 0 leaves them as they are.

    7 is exact on every processor, see `byte_graph`.
    """

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.start != self.name, "start", self.start, "another recipe")
        _require(0 <= self.kept < 1, "kept", self.kept, "0 <= kept < 1")
        _require(not self.kept or bool(self.start), "kept", self.kept, "0 where there is no start")
        integers = self.fit.integer_labels
        no_digits = self.foreign.scribbled or self.foreign.touching
        _require(not integers or not no_digits, "integer_labels", integers, "false beside what is no digit")
        first = self.network.layers[0].kind if self.network.layers else "none"
        _require(self.first_layer_bits in {0, 7}, "first_layer_bits", self.first_layer_bits, "0 or 7")
        _require(self.first_layer_bits == 0 or first == "dense", "the first layer", first, "dense, to be quantized")

    def deformation_at(self, epoch: int) -> Deformation:
        """Return the ranges that hold in an epoch, counted from 0."""
        return self.last_deformation if epoch >= self.fit.epochs - self.fit.last_epochs else self.deformation


def names() -> list[str]:
    """Return the names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """Read a shipped recipe by its name, or any recipe by the path of its TOML file.

    Raises:
        RecipeError: There is no such recipe, or a field of it is unknown, missing or out of range.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"recipe is {name!r}, allowed: {', '.join(names())}, or the path of a .toml file")
    try:
        return parse(tomllib.loads(path.read_text("utf-8")))
    except (ValueError, OSError) as error:  # also what is neither UTF-8 nor TOML
        raise RecipeError(f"{path.name}: {error}") from error


def parse(mapping: dict[str, Any]) -> Recipe:
    """Build a recipe from nested mappings.

    Raises:
        RecipeError: Fields are unknown, missing, of the wrong type or out of range; the message names all of them.
    """
    try:
        return _CONVERTER.structure(mapping, Recipe)
    except cattrs.BaseValidationError as error:
        faults = (fault.rsplit(" @ ", 1) for fault in transform_error(error, "", _describe))
        raise RecipeError("; ".join(f"{where.lstrip('.')}: {what}".lstrip(": ") for what, where in faults)) from error


def _describe(error: BaseException, kind: Any) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        allowed = ", ".join(getattr(error.cl, "__dataclass_fields__", ()))
        return f"{', '.join(sorted(error.extra_fields))} is unknown, allowed: {allowed}"
    if isinstance(error, (TypeError, AttributeError)):  # a number where a table or a list belongs
        return f"allowed: {'a list' if typing.get_origin(kind) is tuple else 'a table'}"
    return "is missing" if isinstance(error, KeyError) else str(error)


def _strict(value: Any, kind: type) -> Any:
    """Take values of exactly this type (and whole numbers as floats): cattrs would make an int of "7"."""
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, "the value", value, f"a value of type {kind.__name__}")
    return value


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
for _kind in (bool, int, float, str):
    _CONVERTER.register_structure_hook(_kind, _strict)
