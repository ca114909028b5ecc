"""Which packages are served, and which are refused for what."""

import numpy as np
import pytest
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.api import messages as converters
from digits_server.errors import Draining, ModelRefused, NotFound
from digits_server.inference.batcher import Batcher
from digits_server.models.package import Key, load
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Watch
from digits_server.models.shadow import Trials


async def registry_of(root, default="toy-b"):
    def make(package):
        return ServedModel(package, Batcher(package.engine.predict, max_batch_size=8, max_queue=8))

    async def on_change():
        pass

    registry = Registry(default, make)
    await Watch(root, registry, Trials(registry), threads=1, every_s=0, on_change=on_change).look(is_told=True)
    registry.settle_default(root)
    return registry


async def test_requests_mean_the_default_model_and_the_latest_version(toy_models):
    """No name means the default model, no version the highest one."""
    registry = await registry_of(toy_models)
    names = [(m.package.name, m.package.version) for m in (registry.get(), registry.get("toy-a"))]
    assert names == [("toy-b", "1"), ("toy-a", "2")]
    assert registry.get("toy-a", "1").package.version == "1"


async def test_latest_is_the_highest_number(tmp_path):
    """Versions are numbers: 10 comes after 9."""
    for version in ("9", "10"):
        write_package(tmp_path / "toy" / version)
    assert (await registry_of(tmp_path)).get().package.version == "10"


async def test_unknown_models_and_versions_are_not_found(toy_models):
    """The error names what was asked for and what there is."""
    registry = await registry_of(toy_models)
    with pytest.raises(NotFound, match=r"model: 'toy' is not served; there are \['toy-a', 'toy-b'\]"):
        registry.get("toy")
    for version in ("3", "x", "-1", "../1"):
        with pytest.raises(NotFound, match=r"toy-a has no version .*; there are \['1', '2'\]"):
            registry.get("toy-a", version)


async def test_single_model_is_the_default(tmp_path):
    """Where there is one model, nobody needs to name it."""
    write_package(tmp_path / "mine" / "1")
    assert (await registry_of(tmp_path, default="digits-mlp")).get().package.name == "mine"


async def test_broken_package_is_refused_and_the_rest_served(tmp_path):
    """A package that fails verification is listed with the reason; the version before it goes on serving."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2", golden_error=0.01)
    registry = await registry_of(tmp_path)
    assert registry.get().package.version == "1"
    assert registry.refused == [Key("toy", 2)]
    assert registry.notes[Key("toy", 2)].reason.startswith("answers differ from the golden ones by 0.01")


async def test_list_tells_who_serves_and_who_was_refused(tmp_path):
    """ListModels shows a refused version beside the one that serves, with the reason."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2", golden_error=0.01)
    serving, refused = converters.models(await registry_of(tmp_path)).models
    assert (serving.version, serving.state, serving.is_default) == ("1", pb.MODEL_STATE_SERVING, True)
    assert (refused.version, refused.state, refused.is_default) == ("2", pb.MODEL_STATE_REFUSED, False)
    assert "golden" in refused.reason


async def test_folders_that_are_no_versions_are_passed_over(tmp_path):
    """Copies in progress and backups, whose names are no numbers, are not looked at."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2.tmp", golden_error=1)
    registry = await registry_of(tmp_path)
    assert len(registry.all()) == 1
    assert registry.refused == []


async def test_nothing_to_serve_is_an_error(tmp_path):
    """A folder without a servable model is said so, by name."""
    with pytest.raises(ModelRefused, match="holds no model that can be served"):
        await registry_of(tmp_path)


async def test_missing_default_is_an_error(toy_models):
    """A default model that does not exist is said so, with those that do."""
    with pytest.raises(ModelRefused, match=r"default model 'digits' is not among \['toy-a', 'toy-b'\]"):
        await registry_of(toy_models, default="digits")


async def test_close_fails_later_requests(toy_models):
    """After close every model answers that the server is going away."""
    registry = await registry_of(toy_models)
    registry.close()
    for model in registry.all():
        with pytest.raises(Draining):
            await model.batcher.submit(image_of(1)[np.newaxis])


def spoil(name):
    def write(folder):
        (folder / name).write_bytes(b"")

    return write


def golden(**arrays):
    def write(folder):
        with np.load(folder / "golden.npz") as old:
            np.savez(folder / "golden.npz", **{**old, **arrays})

    return write


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (spoil("model.onnx"), "can't be loaded"),
        (spoil("golden.npz"), "package can't be read"),
        (lambda folder: (folder / "golden.npz").unlink(), "package can't be read: FileNotFoundError"),
        (golden(probabilities=np.full((10, 10), np.nan, np.float32)), "differ from the golden ones by nan"),
        (golden(inputs=np.zeros((10, 783), np.uint8)), r"inputs uint8 \(10, 783\)"),
        (golden(probabilities=np.zeros((10, 9), np.float32)), r"probabilities \(10, 9\)"),
    ],
)
def test_damaged_packages_are_refused(tmp_path, damage, reason):
    """Whatever is missing or wrong in a package is named."""
    folder = write_package(tmp_path / "toy" / "1")
    damage(folder)
    with pytest.raises(ModelRefused, match=reason):
        load(tmp_path, Key("toy", 1), threads=1)


@pytest.mark.parametrize(
    "metadata", [{"digits.labels": "["}, {"digits.abstain": "{}"}, {"digits.training": "[]"}, {"digits.reference": "3"}]
)
def test_damaged_metadata_is_refused(tmp_path, metadata):
    """Metadata that is no JSON, or lacks what serving needs, is a reason to refuse."""
    write_package(tmp_path / "toy" / "1", metadata=metadata)
    with pytest.raises(ModelRefused, match="package can't be read"):
        load(tmp_path, Key("toy", 1), threads=1)
