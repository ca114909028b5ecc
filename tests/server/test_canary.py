"""How a new version is compared with the one that serves, on recent images, and promoted or refused."""

from dataclasses import replace

import numpy as np
import pytest
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.inference.batcher import Batcher
from digits_server.models.canary import Comparison, RecentImages, compare
from digits_server.models.package import Key, load
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Repository


def test_recent_images_are_the_last_ones():
    """Of a stream of requests the last are kept, at least so many as asked for, whole requests if they are small."""
    recent = RecentImages(5)
    assert recent() == []
    for start in range(0, 20, 2):
        recent.record([np.full((2, 784), start, np.uint8)])
    assert [int(rows[0, 0]) for rows in recent()] == [14, 16, 18]
    recent.record([np.arange(100).repeat(784).reshape(100, 784).astype(np.uint8)])
    assert [int(row[0]) for rows in recent() for row in rows] == [95, 96, 97, 98, 99]


def test_nothing_is_kept_where_nothing_is_compared():
    """A server without shadow deployments holds on to no image."""
    recent = RecentImages(0)
    recent.record([np.zeros((2, 784), np.uint8)])
    assert recent() == []


@pytest.mark.parametrize(
    ("shown", "is_good"),
    [
        (Comparison(100, 0.98, 0.03, 0.01, 2.0), True),
        (Comparison(100, 0.97, 0.0, 0.0, 1.0), False),
        (Comparison(100, 1.0, 0.04, 0.01, 1.0), False),
        (Comparison(100, 1.0, 0.0, 0.0, 2.01), False),
    ],
)
def test_what_decides(shown, is_good):
    """Agreement, abstentions and cost must all be good enough; the limits themselves are."""
    assert shown.is_good == is_good


def test_comparison_is_told_in_a_sentence():
    """The figures stand beside what is asked for."""
    assert str(Comparison(200, 0.75, 0.05, 0.01, 1.5)) == (
        "on 200 recent images it agrees on 75.00% (least: 98%), abstains on 5.00% (most: 3.00%), "
        "and costs 1.50 times as much (most: 2)"
    )


def package(root, version, **options):
    write_package(root / "toy" / str(version), **options)
    return load(root, Key("toy", version), threads=1)


def test_comparison(tmp_path):
    """Agreement and abstentions are counted over all images, in as many batches as it takes."""
    live, unsure, other = package(tmp_path, 1), package(tmp_path, 2, sharpness=1), package(tmp_path, 3, shift=1)
    recent = [np.stack([image_of(digit) for digit in range(10)])] * 20 + [image_of(3)[np.newaxis]]
    shown = compare(live, unsure, recent)
    assert (shown.images, shown.agreement, shown.abstentions, shown.live_abstentions) == (201, 1.0, 1.0, 0.0)
    assert compare(live, other, recent).agreement == 0.0


class Clocked:
    """An engine with a clock of its own: its first run takes ten times as long as the others."""

    def __init__(self, engine, seconds):
        self._engine, self._seconds, self._now, self.sizes = engine, seconds, 0.0, []

    def predict(self, images):
        self.sizes.append(sum(map(len, images)))
        self._now += self._seconds * (1 if len(self.sizes) > 1 else 10)
        return self._engine.predict(images)

    def clock(self):
        return self._now


def test_cost_is_measured_side_by_side(tmp_path):
    """The fastest run of the new version is set against that of the serving one, in the latter's best batches."""
    live = package(tmp_path, 1)
    fast, slow = Clocked(live.engine, 1.0), Clocked(live.engine, 3.0)
    assert compare(replace(live, engine=fast), replace(live, engine=slow), []).cost == pytest.approx(3)
    assert set(fast.sizes) == set(slow.sizes) == {live.cost.best_batch_size()}


class Folder:
    """A models folder with toy/1 served, whose new versions are compared with it."""

    def __init__(self, root):
        self.root = root
        self.registry = Registry("toy", self._serve)
        self.repository = Repository(
            root, self.registry, threads=1, every_s=0, on_change=self._changed, shadow=True, rest=0.0
        )

    def _serve(self, package):
        recent = RecentImages(100)

        def run(images):
            recent.record(images)
            return package.engine.predict(images)

        return ServedModel(package, Batcher(run, max_batch_size=64, max_queue=1000), recent=recent)

    async def _changed(self):
        pass

    async def poll(self):
        await self.repository.poll(is_told=True)

    async def ask(self):
        await self.registry.get().batcher.submit(np.stack([image_of(digit) for digit in range(10)]))

    def serving(self):
        return self.registry.get().package.key.version

    def refusal(self, version):
        note = self.registry.notes[Key("toy", version)]
        assert note.state == pb.MODEL_STATE_REFUSED
        return note.reason


@pytest.fixture
async def folder(tmp_path, monkeypatch):
    # What toy models cost is noise.
    monkeypatch.setattr("digits_server.models.canary.MOST_COST", 1000.0)
    write_package(tmp_path / "toy" / "1")
    folder = Folder(tmp_path)
    await folder.poll()
    await folder.ask()
    return folder


async def test_agreeing_version_is_promoted(folder):
    """A version that shows to be good takes over in the poll that finds it."""
    write_package(folder.root / "toy" / "2", sharpness=20)
    await folder.poll()
    assert folder.serving() == 2
    assert folder.registry.notes == {}


async def test_disagreeing_version_is_refused(folder):
    """It is refused with the figures, and not tried again as long as its files stay the same."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.poll()
    assert folder.refusal(2).startswith("on 10 recent images it agrees on 0.00%")
    first = folder.registry.notes[Key("toy", 2)]
    await folder.poll()
    assert folder.registry.notes[Key("toy", 2)] is first
    assert folder.serving() == 1


@pytest.mark.parametrize("fault", ["raises", "nan"])
async def test_version_that_fails_on_live_images_is_refused(folder, monkeypatch, fault):
    """What a version raises on images that callers send, or answers that are no numbers, speaks against it."""
    write_package(folder.root / "toy" / "2")
    new = load(folder.root, Key("toy", 2), threads=1)
    answers = new.engine.predict([np.stack([image_of(digit) for digit in range(10)])])

    def predict(_images):
        if fault == "raises":
            raise RuntimeError("no")
        answers.confidences[:] = np.nan
        return answers

    monkeypatch.setattr(new.engine, "predict", predict)
    monkeypatch.setattr("digits_server.models.repository.load", lambda *_, **__: new)
    await folder.poll()
    assert ("fails on recent images: no" if fault == "raises" else "agrees on 0.00%") in folder.refusal(2)
    assert folder.serving() == 1


async def test_without_live_images_only_cost_decides(tmp_path):
    """What is there at the start is served, and so is what comes before anybody has asked."""
    for version in (1, 2):
        write_package(tmp_path / "toy" / str(version), shift=version)
    folder = Folder(tmp_path)
    await folder.poll()
    assert folder.serving() == 2


async def test_older_version_is_not_compared(folder):
    """A version below the latest is served beside it at once."""
    write_package(folder.root / "toy" / "0", shift=1)
    await folder.poll()
    assert folder.registry.get("toy", "0").package.key == Key("toy", 0)


async def test_other_labels_cannot_be_compared(folder):
    """A version with other labels is refused, and the reason says what to do about it."""
    write_package(folder.root / "toy" / "2", labels=[*"012345678x"])
    await folder.poll()
    assert "can't be compared" in folder.refusal(2)


async def test_new_files_in_place_are_compared_with_the_old_ones(folder):
    """The latest version itself, replaced by other files, must show that it is as good."""
    write_package(folder.root / "other" / "1", shift=1)
    for name in ("reference.npz", "model.onnx"):
        (folder.root / "other" / "1" / name).replace(folder.root / "toy" / "1" / name)
    await folder.poll()
    assert "agrees on 0.00%" in folder.refusal(1)
    assert folder.serving() == 1
