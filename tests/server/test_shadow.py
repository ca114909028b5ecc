"""How a new version on trial is compared, judged, promoted or refused."""

import asyncio
import shutil
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.config import Config
from digits_server.inference.batcher import Batcher
from digits_server.models import repository as reload
from digits_server.models import shadow
from digits_server.models.package import Key, load
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Watch
from digits_server.models.shadow import Shadow, Trials, compare
from digits_server.models.trial import Judge, Totals, Trial, judge

CONFIG = Config(shadow=True, shadow_images=100, shadow_agreement=0.98, shadow_cost=1.5)


@pytest.mark.parametrize(
    ("totals", "is_promoted"),
    [
        (Totals(images=99, agreed=99, live_s=1, shadow_s=1), None),
        (Totals(images=100, agreed=98, live_s=1, shadow_s=1.5), True),
        (Totals(images=100, agreed=97, live_s=1, shadow_s=1), False),
        (Totals(images=100, agreed=100, live_s=1, shadow_s=1.51), False),
        (Totals(images=60, agreed=60, live_s=1, shadow_s=1) + Totals(60, 50, 5.0, 1, 1), False),
    ],
)
def test_verdict(totals, is_promoted):
    """There is one when enough images have been compared; both thresholds must be met, and are inclusive."""
    verdict = judge(totals, CONFIG)
    assert (verdict and verdict.is_promoted) == is_promoted


def test_verdict_says_what_was_found_and_asked():
    """The reason is a sentence with the figures on both sides."""
    verdict = judge(Totals(images=200, agreed=150, variation=12.0, live_s=2.0, shadow_s=3.0), CONFIG)
    assert verdict.reason == (
        "agrees on 75.00% of 200 images, probabilities differ by 0.0600, costs 1.50 times as much; "
        "asked are 98.00% and at most 1.5 times"
    )


def package(root: Path, version: int, **options):
    write_package(root / "toy" / str(version), **options)
    return load(root, Key("toy", version), threads=1)


def test_comparison(tmp_path):
    """Agreement, distance of the distributions and CPU time of both are taken from the same batch."""
    live, same, other = (package(tmp_path, version, shift=int(version == 3)) for version in (1, 2, 3))
    images = [np.stack([image_of(digit) for digit in range(10)]), image_of(3)[np.newaxis]]
    totals = compare(live.engine, same.engine, images)
    assert (totals.images, totals.agreed, totals.variation) == (11, 11, 0.0)
    assert totals.live_s > 0
    assert totals.shadow_s > 0
    totals = compare(live.engine, other.engine, images)
    assert (totals.images, totals.agreed) == (11, 0)
    assert totals.variation == pytest.approx(11, abs=0.05)


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_failure_on_live_images_is_disagreement(tmp_path, monkeypatch, fault):
    """A version that fails on images that callers send, or answers no numbers, disagrees on all of them."""
    live, new = package(tmp_path, 1), package(tmp_path, 2)
    answers = new.engine.predict([image_of(3)[np.newaxis]])

    def predict(_images):
        if fault == "raises":
            raise RuntimeError("no")
        answers.digits[:] = 0
        answers.probabilities[:] = np.nan
        return answers

    monkeypatch.setattr(new.engine, "predict", predict)
    totals = compare(live.engine, new.engine, [image_of(3)[np.newaxis]])
    assert (totals.images, totals.agreed, totals.variation) == (1, 0, 1.0)


@pytest.mark.driven_clock
async def test_batches_that_come_while_it_is_busy_are_not_copied(tmp_path, monkeypatch):
    """One batch is compared at a time, and after it there is a rest; callers' batches pass by meanwhile."""
    live, new = package(tmp_path, 1), package(tmp_path, 2)
    compared, futures = asyncio.Event(), []

    class Executor:
        def submit(self, *_work):
            futures.append(Future())
            return futures[-1]

    trial = Shadow(
        Trial("toy", 2, ()),
        new,
        on_compared=lambda totals: totals.images and compared.set(),
        report=lambda *_: None,
    )
    monkeypatch.setattr(trial, "_executor", Executor())
    for _ in range(3):
        trial.offer(live, [image_of(3)[np.newaxis]])
    assert len(futures) == 1
    futures[0].set_result(Totals(1, 1, 0.0, 1e-3, 1e-3))
    await compared.wait()
    trial.offer(live, [image_of(3)[np.newaxis]])
    assert len(futures) == 1  # it rests
    await asyncio.sleep(0.018)  # nine times what the comparison took
    trial.offer(live, [image_of(3)[np.newaxis]])
    assert len(futures) == 2


class Folder:
    """A models folder with toy/1 served, whose new versions go on trial."""

    def __init__(self, root, config=CONFIG):
        self.root = root
        self.registry = Registry("toy", self._make)
        self.judge = Judge(config)
        self.trials = Trials(self.registry, config, report=self._report)
        self.watch = Watch(root, self.registry, self.trials, threads=1, every_s=0, on_change=lambda: asyncio.sleep(0))

    def _make(self, package):
        def run(images):
            self.trials.offer(package, images)
            return package.engine.predict(images)

        return ServedModel(package, Batcher(run, max_batch_size=64, max_queue=64))

    def _report(self, trial, totals):
        if verdict := self.judge.hear(trial, totals):
            self.watch.decide(trial, verdict)

    async def look(self):
        await self.watch.look(is_told=True)

    def state(self, version):
        note = self.registry.notes.get(Key("toy", version))
        return note and (pb.ModelState.Name(note.state).removeprefix("MODEL_STATE_"), note.reason)

    async def call_until(self, condition):
        """Answer requests, and give the watch its turns, until a condition holds."""
        run = asyncio.create_task(self.watch.run())
        async with asyncio.timeout(60):
            while not condition():
                await self.registry.get().batcher.submit(np.stack([image_of(digit) for digit in range(10)]))
                await asyncio.sleep(0.001)
        run.cancel()


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Nobody else wants the CPU here."""
    monkeypatch.setattr(reload, "REST", 0.0)


@pytest.fixture
async def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shadow, "SHARE", 1.0)
    write_package(tmp_path / "toy" / "1")
    folder = Folder(tmp_path, Config(shadow=True, shadow_images=100, shadow_cost=1000))
    await folder.look()
    return folder


async def test_what_is_there_at_the_start_is_served(tmp_path):
    """Only versions that come later are tried: at the start there is nothing to compare them to."""
    for version in (1, 2):
        write_package(tmp_path / "toy" / str(version))
    folder = Folder(tmp_path)
    await folder.look()
    assert folder.registry.get().package.key == Key("toy", 2)


async def test_agreeing_version_is_promoted(folder):
    """It answers nobody while it is on trial, and takes over after enough images."""
    write_package(folder.root / "toy" / "2", sharpness=20)
    await folder.look()
    assert folder.state(2) == (
        "SHADOW",
        "has answered no images; 100 are needed",
    )
    assert folder.registry.get().package.key == Key("toy", 1)
    await folder.call_until(lambda: folder.registry.get().package.key == Key("toy", 2))
    assert folder.state(2) is None
    assert not folder.trials.has("toy")


async def test_disagreeing_version_is_refused(folder):
    """It is refused with the figures, and not tried again as long as its files stay the same."""
    write_package(folder.root / "toy" / "2", shift=1)
    await folder.look()
    await folder.call_until(lambda: not folder.trials.has("toy"))
    await folder.look()
    state, reason = folder.state(2)
    assert state == "REFUSED"
    assert reason.startswith("on trial it agrees on 0.00%")
    assert folder.registry.get().package.key == Key("toy", 1)


async def test_costly_version_is_refused(tmp_path, monkeypatch):
    """A version that agrees on everything is refused if it takes more CPU time than allowed."""
    monkeypatch.setattr(shadow, "SHARE", 1.0)
    write_package(tmp_path / "toy" / "1")
    folder = Folder(tmp_path, Config(shadow=True, shadow_images=100, shadow_cost=1e-6))
    await folder.look()
    write_package(tmp_path / "toy" / "2")
    await folder.look()
    await folder.call_until(lambda: not folder.trials.has("toy"))
    assert "agrees on 100.00%" in folder.state(2)[1]
    assert folder.registry.get().package.key == Key("toy", 1)


async def test_newer_version_ends_the_trial_of_the_one_before(folder):
    """One version of a model is on trial at a time: the newest."""
    for version in (2, 3):
        write_package(folder.root / "toy" / str(version))
        await folder.look()
    assert folder.state(2) == ("REFUSED", "version 3 came before it was judged")
    assert folder.state(3)[0] == "SHADOW"


async def test_removed_version_is_tried_no_more(folder):
    """Removing the files ends the trial; changing them begins it anew, or ends it if they are bad."""
    new = write_package(folder.root / "toy" / "2")
    await folder.look()
    shutil.rmtree(new)
    await folder.look()
    assert folder.state(2) is None
    assert not folder.trials.has("toy")
    write_package(new, shift=1)
    await folder.look()
    assert folder.trials.has("toy")
    (new / "golden.npz").write_bytes(b"")
    await folder.look()
    assert folder.state(2)[0] == "REFUSED"
    assert not folder.trials.has("toy")


async def test_batch_that_comes_at_the_end_of_a_trial_passes_by(folder):
    """Batches are offered on the models' thread; that a trial ends in that moment is no fault that a caller sees."""
    new = write_package(folder.root / "toy" / "2")
    await folder.look()
    live = folder.registry.get().package
    await asyncio.to_thread(folder.trials.offer, live, [image_of(3)[np.newaxis]])
    folder.trials.end(Key("toy", 2))
    for _ in range(2):
        await asyncio.to_thread(folder.trials.offer, live, [image_of(3)[np.newaxis]])
    assert folder.state(2) == ("SHADOW", "has answered no images; 100 are needed")
    shutil.rmtree(new)
    await folder.look()
    assert folder.state(2) is None


async def test_last_version_stays_while_its_successor_is_on_trial(folder):
    """Removing the version that serves does not leave its model without an answer before the verdict, or after."""
    write_package(folder.root / "other" / "1")
    await folder.look()
    write_package(folder.root / "other" / "2")
    await folder.look()
    shutil.rmtree(folder.root / "other" / "1")
    await folder.look()
    assert folder.registry.get("other").package.key == Key("other", 1)


async def test_older_and_other_labels_are_not_tried(folder):
    """A version below the latest is served beside it at once; one with other labels can't be compared."""
    write_package(folder.root / "toy" / "0", shift=1)
    await folder.look()
    assert folder.registry.get("toy", "0").package.key == Key("toy", 0)
    write_package(folder.root / "toy" / "2", metadata={"digits.labels": '["0","1","2","3","4","5","6","7","8","x"]'})
    await folder.look()
    assert "can't be compared" in folder.state(2)[1]
