"""What a change in the models folder does to what is served."""

import asyncio
import os
import re
import shutil
import weakref

import numpy as np
import onnx
import pytest
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.api import messages as converters
from digits_server.errors import NotFound, NotReady
from digits_server.inference.batcher import Batcher
from digits_server.models import repository
from digits_server.models.package import Key
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Repository


class Folder:
    """A models folder with toy/1 and other/1, and a repository that has seen them."""

    def __init__(self, root):
        self.root, self.changes = root, 0
        self.registry = Registry("toy", self._make)
        self.repository = Repository(root, self.registry, threads=1, every_s=0, on_change=self._changed, rest=0.0)

    def _make(self, package):
        return ServedModel(package, Batcher(package.engine.predict, max_batch_size=8, max_queue=8))

    async def _changed(self):
        self.changes += 1

    async def poll(self, times=2):
        """Poll twice: what is new settles."""
        for _ in range(times):
            await self.repository.poll(is_told=False)

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


@pytest.fixture
async def folder(tmp_path):
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "other" / "1")
    folder = Folder(tmp_path)
    await folder.repository.poll(is_told=True)
    assert folder.serving() == ["other/1", "toy/1"]
    return folder


async def test_new_version_is_served_when_its_files_have_settled(folder):
    """The first poll only remembers a new version; the second, which finds the same files, serves it as the latest."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.poll(times=1)
    assert await folder.answer() == 3
    await folder.poll(times=1)
    assert await folder.answer() == 4
    assert await folder.answer(version="1") == 3


async def test_unchanged_folder_changes_nothing(folder):
    """Looking again at the same files loads nothing."""
    before, changes = folder.registry.all(), folder.changes
    await folder.poll(times=3)
    assert folder.registry.all() == before
    assert folder.changes == changes


async def test_growing_files_are_left_alone(folder):
    """As long as each poll finds other files than the last, the version is not touched."""
    write_package(folder.root / "toy" / "2")
    for size in range(1, 5):
        with (folder.root / "toy" / "2" / "model.onnx").open("r+b") as file:
            file.truncate(1000 * size)
        await folder.poll(times=1)
    assert list(folder.listed()) == ["other/1", "toy/1"]


async def test_files_that_change_while_they_are_loaded_do_not_count(folder, monkeypatch):
    """What was written during the load is neither served nor refused before it has settled again."""
    package = write_package(folder.root / "toy" / "2", shift=1)

    def load_and_touch(root, key, **options):
        os.utime(package / "reference.npz")
        return original(root, key, **options)

    original = repository.load
    with monkeypatch.context() as patch:
        patch.setattr(repository, "load", load_and_touch)
        await folder.poll()
    assert folder.serving() == ["other/1", "toy/1"]
    await folder.poll()
    assert folder.serving() == ["other/1", "toy/1", "toy/2"]


async def test_bad_version_is_refused_until_its_files_change(folder):
    """The old version serves on beside a refused one, which is tried again when, and only when, it is mended."""
    bad = write_package(folder.root / "toy" / "2", shift=1, reference_error=0.01)
    await folder.poll()
    assert await folder.answer() == 3
    state, reason = folder.listed()["toy/2"]
    assert state == "REFUSED"
    assert "answers differ from the reference outputs by 0.01" in reason
    changes = folder.changes
    await folder.poll(times=3)
    assert folder.changes == changes
    shutil.rmtree(bad)
    write_package(bad, shift=1)
    await folder.poll()
    assert folder.listed()["toy/2"] == ("SERVING", "")
    assert await folder.answer() == 4


async def test_removal_rolls_back(folder):
    """Without the latest version, the one before answers again; asking for the removed one is an error."""
    package = write_package(folder.root / "toy" / "2", shift=1)
    await folder.poll()
    shutil.rmtree(package)
    await folder.poll(times=1)
    assert await folder.answer() == 4
    await folder.poll(times=1)
    assert await folder.answer() == 3
    with pytest.raises(NotFound, match=r"toy has no version '2'; there are \['1'\]"):
        folder.registry.get("toy", "2")


async def test_version_that_takes_anothers_place_is_there_first(folder):
    """Renaming 1 to 2 leaves no moment without an answer, nor a step back."""
    (folder.root / "toy" / "1").rename(folder.root / "toy" / "2")
    await folder.poll(times=1)
    assert folder.serving() == ["other/1", "toy/1"]
    await folder.poll(times=1)
    assert folder.serving() == ["other/1", "toy/2"]


async def test_replacement_in_place_is_served(folder):
    """Other files under the same version are another model: they are verified, and answer."""
    shutil.rmtree(folder.root / "toy" / "1")
    write_package(folder.root / "toy" / "1", shift=2)
    await folder.poll()
    assert await folder.answer() == 5
    assert await folder.answer(version="1") == 5


async def test_bad_replacement_in_place_leaves_the_old_one(folder):
    """Of a version whose new files are refused the old ones serve on, and the list says what is wrong with the new."""
    (folder.root / "toy" / "1" / "model.onnx").write_bytes(b"not a model")
    await folder.poll()
    assert await folder.answer() == 3
    state, reason = folder.listed()["toy/1"]
    assert state == "SERVING"
    assert "model.onnx can't be loaded" in reason


async def test_other_models_come_and_go(folder):
    """A model is there with its first version, and gone with its last."""
    write_package(folder.root / "new" / "7")
    shutil.rmtree(folder.root / "other")
    await folder.poll()
    assert folder.registry.names == ["new", "toy"]
    with pytest.raises(NotFound, match=r"'other' is not served; there are \['new', 'toy'\]"):
        folder.registry.get("other")


async def test_default_model_keeps_its_last_version(folder, caplog):
    """Requests that name no model keep their answer; only another version lets the lost one go."""
    shutil.rmtree(folder.root / "toy")
    await folder.poll(times=4)
    assert await folder.answer("") == 3
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "last version of a model that is needed is gone; it serves on"
    ]
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.poll(times=3)
    assert folder.serving() == ["other/1", "toy/2"]


@pytest.mark.parametrize("leave_mount_point", [True, False])
async def test_vanished_folder_takes_nothing_along(folder, caplog, leave_mount_point):
    """If the folder is gone, or empty as an unmounted volume's, all serve on, and the log says so once each way."""
    folder.root.rename(folder.root.with_name("elsewhere"))
    if leave_mount_point:
        folder.root.mkdir()
    await folder.poll(times=3)
    assert folder.serving() == ["other/1", "toy/1"]
    assert not folder.repository.is_readable
    if leave_mount_point:
        folder.root.rmdir()
    folder.root.with_name("elsewhere").rename(folder.root)
    await folder.poll(times=3)
    assert folder.repository.is_readable
    assert [record.message for record in caplog.records if record.levelno >= 30] == [
        "models can't be read; those that are loaded serve on"
    ]


async def test_model_folder_that_cannot_be_listed_is_not_taken_for_removed(folder, monkeypatch):
    """An error in reading one served model's folder stops the poll; one of a folder that serves nothing is told.

    A file system's own folder is no model.
    """
    (folder.root / "lost+found").mkdir()
    (folder.root / "mine").mkdir()

    def deny(name):
        def iterdir(path):
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        return iterdir

    # Not by chmod: tests may run as root, who may read everything.
    original = type(folder.root).iterdir
    monkeypatch.setattr(type(folder.root), "iterdir", deny("toy"))
    await folder.poll(times=3)
    assert not folder.repository.is_readable
    assert folder.serving() == ["other/1", "toy/1"]
    for name in ("lost+found", "mine"):
        monkeypatch.setattr(type(folder.root), "iterdir", deny(name))
        await folder.poll(times=3)
        assert folder.repository.is_readable
    assert folder.registry.faults == {("mine", ""): "its folder can't be read: Permission denied"}


async def test_replaced_version_finishes_its_requests_and_is_freed(folder):
    """A request admitted before the swap is answered by its version; after that nothing keeps the old one in memory."""
    old = folder.registry.get("toy")
    pending = asyncio.create_task(old.batcher.submit(image_of(3)[np.newaxis]))
    await asyncio.sleep(0)
    freed = weakref.ref(old.package.engine)
    del old
    shutil.rmtree(folder.root / "toy" / "1")
    write_package(folder.root / "toy" / "1", shift=2)
    await folder.poll()
    (outcome,) = await pending
    assert int(outcome.answers.digits[outcome.start]) == 3
    assert await folder.answer() == 5
    del pending, outcome
    assert freed() is None


async def test_told_poll_waits_for_no_second_one(folder):
    """Whoever says that the folder is complete gets the new version in one poll."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.repository.poll(is_told=True)
    assert await folder.answer() == 4


async def test_requests_before_the_default_model_are_told_to_go_elsewhere(tmp_path):
    """Without a default model, requests get UNAVAILABLE, those for served models their answer."""
    write_package(tmp_path / "other" / "1")
    folder = Folder(tmp_path)
    await folder.repository.poll(is_told=True)
    assert await folder.answer("other") == 3
    for name in ("", "toy", "unknown"):
        with pytest.raises(NotReady, match="waits for its default model, 'toy'"):
            folder.registry.get(name)


async def test_version_names_have_one_spelling(tmp_path):
    """Folders whose names are no plain whole numbers are no versions."""
    for name in ("01", "1.0", "+1", "latest", "1_0", "٣", "2"):
        write_package(tmp_path / "toy" / name)
    folder = Folder(tmp_path)
    await folder.repository.poll(is_told=True)
    assert folder.serving() == ["toy/2"]
    assert Key("toy", 2).folder(tmp_path).is_dir()


def lay(root, path):
    """Put a whole package somewhere, with its model under the name given."""
    write_package(root / "source")
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "source" / "model.onnx").rename(root / path)
    shutil.rmtree(root / "source")


@pytest.mark.parametrize(
    ("path", "entry", "reason"),
    [
        ("mine/v1/model.onnx", "mine/v1", "'v1' is no version: .* what counts is mine/1/model.onnx"),
        ("mine/001/model.onnx", "mine/001", "without leading zeros; what counts is mine/1/model.onnx"),
        ("mine/1/mine.onnx", "mine/1", "the folder holds mine.onnx; what counts is mine/1/model.onnx"),
        ("mine/model.onnx", "mine/", "model.onnx lies in mine/; what counts is mine/1/model.onnx"),
        ("mine.onnx", "mine.onnx/", "it lies in the folder of models; what counts is NAME/1/model.onnx"),
    ],
)
async def test_what_lies_in_the_wrong_place_is_told(folder, caplog, path, entry, reason):
    """A model where none counts is listed as refused with the place where it would count, and logged once."""
    before = folder.changes
    lay(folder.root, path)
    await folder.poll(times=4)
    state, told = folder.listed()[entry]
    assert state == "REFUSED"
    assert re.search(reason, told)
    assert [record.reason for record in caplog.records if record.message == "no model"] == [told]
    assert folder.registry.faults == {tuple(entry.split("/")): told}
    assert folder.changes == before + 1
    (folder.root / path).unlink()
    await folder.poll(times=1)
    assert entry not in folder.listed()


async def test_hidden_folders_are_passed_over(folder):
    """Copies in progress, whose names begin with a dot, are not looked at."""
    write_package(folder.root / "toy" / ".2.partial")
    write_package(folder.root / ".trash" / "1")
    await folder.poll()
    assert list(folder.listed()) == ["other/1", "toy/1"]


async def test_who_asks_for_what_was_refused_is_told_why(folder):
    """NOT_FOUND says that the model, or the version, was refused and for what, beside what there is."""
    write_package(folder.root / "mine" / "1", reference_error=0.01)
    write_package(folder.root / "toy" / "2", reference_error=0.01)
    lay(folder.root, "yours/v1/model.onnx")
    await folder.poll()
    refusal = "was refused: answers differ from the reference outputs by 0.01; allowed is 0.0001"
    with pytest.raises(NotFound) as error:
        folder.registry.get("mine")
    assert error.value.message == f"model: 'mine' is not served; version 1 {refusal}; there are ['other', 'toy']"
    with pytest.raises(NotFound) as error:
        folder.registry.get("toy", "2")
    assert error.value.message == f"version: toy has no version '2'; version 2 {refusal}; there are ['1']"
    with pytest.raises(NotFound, match="version v1 was refused: 'v1' is no version"):
        folder.registry.get("yours")
    with pytest.raises(NotFound, match=r"toy has no version '3'; there are \['1'\]"):
        folder.registry.get("toy", "3")


async def test_reasons_fit_in_one_line(folder):
    """However long a fault's text is, and however many lines it has, the reason is short and one line."""
    folder.registry.refuse(Key("mine", 1), "line\n" * 10_000)
    with pytest.raises(NotFound) as error:
        folder.registry.get("mine")
    assert len(error.value.message) < 1200
    assert "\n" not in error.value.message


async def test_changed_weights_beside_a_model_are_another_model(folder):
    """Files that a model keeps its weights in count as its own: other ones are loaded."""
    other = write_package(folder.root / ".other", shift=2)
    model = onnx.load(other / "model.onnx")
    (other / "model.onnx").unlink()
    onnx.save(model, other / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    for name in ("model.onnx.data", "model.onnx", "reference.npz"):
        (other / name).replace(folder.root / "toy" / "1" / name)
    await folder.poll()
    assert await folder.answer() == 5
    with (folder.root / "toy" / "1" / "model.onnx.data").open("r+b") as file:
        file.truncate(0)
    assert await folder.answer() == 5
    await folder.poll()
    assert "can't be loaded" in folder.listed()["toy/1"][1]
    assert await folder.answer() == 5


async def test_unverified_model_says_so(folder, caplog):
    """Somebody's model without reference outputs is served, and the log and the list say that nothing verified it."""
    mine = write_package(folder.root / "mine" / "1", metadata={"digits.training": None})
    (mine / "reference.npz").unlink()
    await folder.poll()
    assert folder.listed()["mine/1"] == ("SERVING", "not verified: there is no reference.npz")
    assert "not verified: there is no reference.npz" in [getattr(record, "remark", "") for record in caplog.records]
