"""What a change in the models folder does to what is served."""

import asyncio
import os
import shutil
import weakref

import numpy as np
import pytest
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.api import messages as converters
from digits_server.errors import NotFound, NotReady
from digits_server.inference.batcher import Batcher
from digits_server.models import repository as reload
from digits_server.models.package import Key
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Watch
from digits_server.models.shadow import Trials


class Folder:
    """A models folder with toy/1 and other/1, and a watch that has seen them."""

    def __init__(self, root):
        self.root, self.changes = root, 0
        self.registry = Registry("toy", self._make)
        trials = Trials(self.registry)
        self.watch = Watch(root, self.registry, trials, threads=1, every_s=0, on_change=self._changed)

    def _make(self, package):
        return ServedModel(package, Batcher(package.engine.predict, max_batch_size=8, max_queue=8))

    async def _changed(self):
        self.changes += 1

    async def look(self, times=2):
        """Look twice: what is new settles."""
        for _ in range(times):
            await self.watch.look(is_told=False)

    def serving(self):
        return [str(model.package.key) for model in self.registry.all()]

    async def answer(self, name="toy", version="", digit=3):
        """Return the digit that a request gets."""
        (outcome,) = await self.registry.get(name, version).batcher.submit(image_of(digit)[np.newaxis])
        return int(outcome.answers.digits[outcome.start])

    def listed(self):
        states = {value: name.removeprefix("MODEL_STATE_") for name, value in pb.ModelState.items()}
        models = converters.models(self.registry).models
        return {f"{model.name}/{model.version}": (states[model.state], model.reason) for model in models}


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Nobody else wants the CPU here."""
    monkeypatch.setattr(reload, "REST", 0.0)


@pytest.fixture
async def folder(tmp_path):
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "other" / "1")
    folder = Folder(tmp_path)
    await folder.watch.look(is_told=True)
    assert folder.serving() == ["other/1", "toy/1"]
    return folder


async def test_new_version_is_served_when_its_files_have_settled(folder):
    """The first look only remembers a new version; the second, which finds the same files, serves it as the latest."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.look(times=1)
    assert await folder.answer() == 3
    await folder.look(times=1)
    assert await folder.answer() == 4
    assert await folder.answer(version="1") == 3


async def test_unchanged_folder_changes_nothing(folder):
    """Looking again at the same files loads nothing."""
    before, changes = folder.registry.all(), folder.changes
    await folder.look(times=3)
    assert folder.registry.all() == before
    assert folder.changes == changes


async def test_growing_files_are_left_alone(folder):
    """As long as each look finds other files than the last, the version is not touched."""
    write_package(folder.root / "toy" / "2")
    for size in range(1, 5):
        with (folder.root / "toy" / "2" / "model.onnx").open("r+b") as file:
            file.truncate(1000 * size)
        await folder.look(times=1)
    assert list(folder.listed()) == ["other/1", "toy/1"]


async def test_files_that_change_while_they_are_loaded_do_not_count(folder, monkeypatch):
    """What was written during the load is neither served nor refused before it has settled again."""
    package = write_package(folder.root / "toy" / "2", shift=1)

    def load_and_touch(root, key, **options):
        os.utime(package / "golden.npz")
        return original(root, key, **options)

    original = reload.load
    with monkeypatch.context() as patch:
        patch.setattr(reload, "load", load_and_touch)
        await folder.look()
    assert folder.serving() == ["other/1", "toy/1"]
    await folder.look()
    assert folder.serving() == ["other/1", "toy/1", "toy/2"]


async def test_bad_version_is_refused_until_its_files_change(folder):
    """The old version serves on beside a refused one, which is tried again when, and only when, it is mended."""
    bad = write_package(folder.root / "toy" / "2", shift=1, golden_error=0.01)
    await folder.look()
    assert await folder.answer() == 3
    state, reason = folder.listed()["toy/2"]
    assert state == "REFUSED"
    assert "answers differ from the golden ones by 0.01" in reason
    changes = folder.changes
    await folder.look(times=3)
    assert folder.changes == changes
    shutil.rmtree(bad)
    write_package(bad, shift=1)
    await folder.look()
    assert folder.listed()["toy/2"] == ("SERVING", "")
    assert await folder.answer() == 4


async def test_removal_rolls_back(folder):
    """Without the latest version, the one before answers again; asking for the removed one is an error."""
    package = write_package(folder.root / "toy" / "2", shift=1)
    await folder.look()
    shutil.rmtree(package)
    await folder.look(times=1)
    assert await folder.answer() == 4
    await folder.look(times=1)
    assert await folder.answer() == 3
    with pytest.raises(NotFound, match=r"toy has no version '2'; there are \['1'\]"):
        folder.registry.get("toy", "2")


async def test_version_that_takes_anothers_place_is_there_first(folder):
    """Renaming 1 to 2 leaves no moment without an answer, nor a step back."""
    (folder.root / "toy" / "1").rename(folder.root / "toy" / "2")
    await folder.look(times=1)
    assert folder.serving() == ["other/1", "toy/1"]
    await folder.look(times=1)
    assert folder.serving() == ["other/1", "toy/2"]


async def test_replacement_in_place_is_served(folder):
    """Other files under the same version are another model: they are verified, and answer."""
    shutil.rmtree(folder.root / "toy" / "1")
    write_package(folder.root / "toy" / "1", shift=2)
    await folder.look()
    assert await folder.answer() == 5
    assert await folder.answer(version="1") == 5


async def test_bad_replacement_in_place_leaves_the_old_one(folder):
    """Of a version whose new files are refused the old ones serve on, and the list says what is wrong with the new."""
    (folder.root / "toy" / "1" / "model.onnx").write_bytes(b"not a model")
    await folder.look()
    assert await folder.answer() == 3
    state, reason = folder.listed()["toy/1"]
    assert state == "SERVING"
    assert "model.onnx can't be loaded" in reason


async def test_other_models_come_and_go(folder):
    """A model is there with its first version, and gone with its last."""
    write_package(folder.root / "new" / "7")
    shutil.rmtree(folder.root / "other")
    await folder.look()
    assert folder.registry.names == ["new", "toy"]
    with pytest.raises(NotFound, match=r"'other' is not served; there are \['new', 'toy'\]"):
        folder.registry.get("other")


async def test_default_model_keeps_its_last_version(folder, caplog):
    """Requests that name no model keep their answer; only another version lets the lost one go."""
    shutil.rmtree(folder.root / "toy")
    await folder.look(times=4)
    assert await folder.answer("") == 3
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "last version of a model that is needed is gone; it serves on"
    ]
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.look(times=3)
    assert folder.serving() == ["other/1", "toy/2"]


@pytest.mark.parametrize("leave_mount_point", [True, False])
async def test_vanished_folder_takes_nothing_along(folder, caplog, leave_mount_point):
    """If the folder is gone, or empty as an unmounted volume's, all serve on, and the log says so once each way."""
    folder.root.rename(folder.root.with_name("elsewhere"))
    if leave_mount_point:
        folder.root.mkdir()
    await folder.look(times=3)
    assert folder.serving() == ["other/1", "toy/1"]
    assert not folder.watch.is_readable
    if leave_mount_point:
        folder.root.rmdir()
    folder.root.with_name("elsewhere").rename(folder.root)
    await folder.look(times=3)
    assert folder.watch.is_readable
    assert [record.message for record in caplog.records if record.levelno >= 30] == [
        "models can't be read; those that are loaded serve on"
    ]


async def test_model_folder_that_cannot_be_listed_is_not_taken_for_removed(folder, monkeypatch):
    """An error in reading one served model's folder stops the look; one of a folder that serves nothing does not."""
    (folder.root / "lost+found").mkdir()

    def deny(name):
        def iterdir(path):
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        return iterdir

    # Not by chmod: tests may run as root, who may read everything.
    original = type(folder.root).iterdir
    monkeypatch.setattr(type(folder.root), "iterdir", deny("toy"))
    await folder.look(times=3)
    assert not folder.watch.is_readable
    assert folder.serving() == ["other/1", "toy/1"]
    monkeypatch.setattr(type(folder.root), "iterdir", deny("lost+found"))
    await folder.look(times=3)
    assert folder.watch.is_readable


async def test_replaced_version_finishes_its_requests_and_is_freed(folder):
    """A request admitted before the swap is answered by its version; after that nothing keeps the old one in memory."""
    old = folder.registry.get("toy")
    pending = asyncio.create_task(old.batcher.submit(image_of(3)[np.newaxis]))
    await asyncio.sleep(0)
    freed = weakref.ref(old.package.engine)
    del old
    shutil.rmtree(folder.root / "toy" / "1")
    write_package(folder.root / "toy" / "1", shift=2)
    await folder.look()
    (outcome,) = await pending
    assert int(outcome.answers.digits[outcome.start]) == 3
    assert await folder.answer() == 5
    del pending, outcome
    assert freed() is None


async def test_told_look_waits_for_no_second_one(folder):
    """Whoever says that the folder is complete gets the new version in one look."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.watch.look(is_told=True)
    assert await folder.answer() == 4


async def test_requests_before_the_default_model_are_told_to_go_elsewhere(tmp_path):
    """Without a default model, requests get UNAVAILABLE, those for served models their answer."""
    write_package(tmp_path / "other" / "1")
    folder = Folder(tmp_path)
    await folder.watch.look(is_told=True)
    assert await folder.answer("other") == 3
    for name in ("", "toy", "unknown"):
        with pytest.raises(NotReady, match="waits for its default model, 'toy'"):
            folder.registry.get(name)


async def test_version_names_have_one_spelling(tmp_path):
    """Folders whose names are no plain whole numbers are no versions."""
    for name in ("01", "1.0", "+1", "latest", "1_0", "٣", "2"):
        write_package(tmp_path / "toy" / name)
    folder = Folder(tmp_path)
    await folder.watch.look(is_told=True)
    assert folder.serving() == ["toy/2"]
    assert Key("toy", 2).folder(tmp_path).is_dir()
