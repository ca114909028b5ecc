"""The batcher, driven by a clock that the test moves and a model that does as it is told."""

import asyncio
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from digits_server.errors import DeadlineExpired, DeadlineTooShort, Draining, InvalidArgument, QueueFull
from digits_server.inference.batcher import Batcher
from digits_server.inference.request import Job

pytestmark = pytest.mark.driven_clock


class Puppet:
    """A model that answers each row with itself, and keeps what it was asked."""

    def __init__(self):
        self.batches = []
        self.guilty = set()

    def __call__(self, payloads):
        rows = np.concatenate(payloads)
        if self.guilty.intersection(rows.tolist()):
            raise ValueError("this row breaks the model")
        self.batches.append(rows.tolist())
        return rows


class PuppetExecutor(Executor):
    """Runs nothing until the test says so."""

    def __init__(self):
        self.waiting = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def finish(self):
        future, call = self.waiting.pop(0)
        future.set_result(call())


def make(run, **settings):
    loop = asyncio.get_running_loop()
    return Batcher(run, **({"max_batch_size": 8, "max_queue": 100, "clock": loop.time} | settings))


def rows(*numbers):
    return np.array(numbers)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def values(outcomes):
    return np.concatenate([outcome.answers[outcome.start : outcome.end] for outcome in outcomes]).tolist()


async def test_lone_request_runs_at_once():
    """A request that nobody joins runs without any time passing."""
    model = Puppet()
    outcomes = await make(model).submit(rows(7))
    assert values(outcomes) == [7]
    assert outcomes[0].queue_s == 0
    assert outcomes[0].batch_size == 1
    assert asyncio.get_running_loop().now == 0


async def test_requests_of_one_turn_share_a_batch():
    """Requests that arrive in the same turn of the event loop run together, and each gets its own rows back."""
    model = Puppet()
    batcher = make(model)
    answers = await asyncio.gather(*(batcher.submit(rows(*range(10 * n, 10 * n + n))) for n in (1, 2, 3)))
    assert [values(answer) for answer in answers] == [[10], [20, 21], [30, 31, 32]]
    assert model.batches == [[10, 20, 21, 30, 31, 32]]


async def test_batches_hold_at_most_max_batch_size_rows():
    """Rows are counted, not requests: the batch ends before the request that does not fit."""
    model = Puppet()
    batcher = make(model, max_batch_size=4)
    await asyncio.gather(*(batcher.submit(rows(n, n)) for n in range(3)), batcher.submit(rows(9)))
    assert model.batches == [[0, 0, 1, 1], [2, 2, 9]]


async def test_order_survives_random_sizes():
    """Whatever the sizes, every caller gets the answers to its own rows, in its own order."""
    random = np.random.default_rng(1)
    batcher = make(Puppet(), max_batch_size=16, max_queue=10_000)
    asked = [random.integers(0, 1 << 30, random.integers(1, 40)) for _ in range(200)]
    answers = await asyncio.gather(*(batcher.submit(numbers) for numbers in asked))
    assert [values(answer) for answer in answers] == [numbers.tolist() for numbers in asked]


async def test_oversize_request_is_split():
    """A request larger than a batch runs in parts and comes back whole."""
    model = Puppet()
    outcomes = await make(model, max_batch_size=4).submit(rows(*range(10)))
    assert values(outcomes) == list(range(10))
    assert [len(batch) for batch in model.batches] == [4, 4, 2]


async def test_next_batch_forms_while_one_runs():
    """Requests that arrive during a run in the executor form one batch, released when the run ends."""
    model, executor, reports = Puppet(), PuppetExecutor(), []
    batcher = make(model, executor=executor, on_batch=reports.append)
    first = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    rest = [asyncio.create_task(batcher.submit(rows(n))) for n in (2, 3)]
    await turns()
    assert batcher.waiting_rows == 2
    executor.finish()
    assert values(await first) == [1]
    executor.finish()
    assert [values(await task) for task in rest] == [[2], [3]]
    assert model.batches == [[1], [2, 3]]
    assert [report.release for report in reports] == ["joined", "joined"]


async def test_expected_requests_are_waited_for():
    """Where several are expected the first waits for them, and they run when the last has come."""
    model, reports, loop = Puppet(), [], asyncio.get_running_loop()
    batcher = make(model, expect=lambda _requests, _release, _in_flight: 3, on_batch=reports.append)
    await batcher.submit(rows(0))
    tasks = []
    for n in (1, 2, 3):
        await asyncio.sleep(0.0005)
        tasks.append(asyncio.create_task(batcher.submit(rows(n))))
    assert [values(await task) for task in tasks] == [[1], [2], [3]]
    assert model.batches == [[0], [1, 2, 3]]
    assert reports[1].release == "joined"
    assert loop.now == pytest.approx(0.0015)


async def test_who_has_left_is_not_counted_among_those_who_wait():
    """The next to come waits for others as if the one who left had never been there."""
    reports = []
    batcher = make(Puppet(), expect=lambda _callers, _release, _in_flight: 2, on_batch=reports.append)
    await batcher.submit(rows(0))
    left = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    left.cancel()
    await turns()
    await batcher.submit(rows(2))
    assert [report.release for report in reports] == ["joined", "quiet"]


async def test_expectation_is_told_who_is_there():
    """What decides how many to wait for learns each batch's requests and how many are in flight, answered ones not."""
    told = []

    def expect(*facts):
        told.append(facts)
        return 1

    batcher = make(Puppet(), expect=expect, max_batch_size=2)
    await asyncio.gather(*(batcher.submit(rows(n)) for n in range(3)))
    await batcher.submit(rows(9))
    assert told == [(2, "full", 3), (1, "joined", 1), (1, "joined", 1)]
    assert batcher.in_flight == 0


async def test_admitted_requests_run_in_their_order_without_tasks():
    """Who has several in work at once, as a stream, admits them one after the other and awaits them later."""
    model = Puppet()
    batcher = make(model)
    jobs = [Job(rows(n)) for n in range(3)]
    for job in jobs:
        batcher.admit(job)
    assert batcher.in_flight == 3
    batcher.release(jobs[1])
    assert [values(await job.settled()) for job in (jobs[0], jobs[2])] == [[0], [2]]
    batcher.release(jobs[0])
    batcher.release(jobs[2])
    assert model.batches == [[0, 2]]
    assert batcher.in_flight == 0


async def test_nobody_is_waited_for_in_vain():
    """When nobody has come for a millisecond, those who are there run."""
    reports, loop = [], asyncio.get_running_loop()
    batcher = make(Puppet(), expect=lambda _requests, _release, _in_flight: 100, on_batch=reports.append)
    await batcher.submit(rows(0))
    first = asyncio.create_task(batcher.submit(rows(1)))
    await asyncio.sleep(0.0005)
    second = asyncio.create_task(batcher.submit(rows(2)))
    await asyncio.gather(first, second)
    assert [report.release for report in reports] == ["joined", "quiet"]
    assert reports[1].size == 2
    assert loop.now == pytest.approx(0.002)


async def test_waiting_for_others_has_an_end():
    """Even if somebody joins all the time, the first request waits 5 ms at most."""
    reports, loop = [], asyncio.get_running_loop()
    batcher = make(
        Puppet(), expect=lambda _requests, _release, _in_flight: 100, on_batch=reports.append, max_batch_size=100
    )
    await batcher.submit(rows(0))
    tasks = []
    while len(reports) < 2:
        tasks.append(asyncio.create_task(batcher.submit(rows(len(tasks)))))
        await asyncio.sleep(0.0004)
    assert reports[1].release == "wait"
    assert loop.now == pytest.approx(0.005, abs=0.0015)
    await asyncio.gather(*tasks)


async def test_deadline_does_not_allow_waiting():
    """A request whose deadline is near takes all who wait along at once."""
    model, loop = Puppet(), asyncio.get_running_loop()
    batcher = make(model, expect=lambda _requests, _release, _in_flight: 100)
    await batcher.submit(rows(0))
    patient = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    assert values(await batcher.submit(rows(2), deadline=loop.now + 0.004)) == [2]
    assert values(await patient) == [1]
    assert loop.now == 0


async def test_who_has_no_time_to_wait_does_not_although_a_full_batch_left_it_over():
    """The oldest fill a batch; the one behind them, whose deadline is near, runs in the next one, at once."""
    loop, model = asyncio.get_running_loop(), Puppet()
    batcher = make(model, max_batch_size=2, max_wait_s=5.0, cost=lambda _: 0.0)
    requests = [batcher.submit(rows(0)), batcher.submit(rows(1)), batcher.submit(rows(2), deadline=1.0)]
    assert [values(outcomes) for outcomes in await asyncio.gather(*requests)] == [[0], [1], [2]]
    assert model.batches == [[0, 1], [2]]
    assert loop.now == 0


async def test_max_wait_gathers_until_time_is_up():
    """With max_wait, a first request waits that long for company, and no longer."""
    model, loop = Puppet(), asyncio.get_running_loop()
    batcher = make(model, max_wait_s=0.010)
    first = asyncio.create_task(batcher.submit(rows(1)))
    await asyncio.sleep(0.006)
    second = asyncio.create_task(batcher.submit(rows(2)))
    assert values(await first) == [1]
    assert values(await second) == [2]
    assert model.batches == [[1, 2]]
    assert loop.now == pytest.approx(0.010)


async def test_max_wait_survives_leavers_and_long_runs():
    """A wait that ends with nobody waiting, or during a run, does not make later requests wait for ever."""
    executor, loop = PuppetExecutor(), asyncio.get_running_loop()
    batcher = make(Puppet(), max_wait_s=0.010, executor=executor)
    leaver = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    leaver.cancel()
    await asyncio.sleep(0.020)
    first = asyncio.create_task(batcher.submit(rows(2)))
    await asyncio.sleep(0.015)
    second = asyncio.create_task(batcher.submit(rows(3)))
    await asyncio.sleep(0.015)
    executor.finish()
    await turns()
    executor.finish()
    assert values(await first) == [2]
    assert values(await second) == [3]
    assert loop.now == pytest.approx(0.050)


async def test_max_wait_ends_when_the_batch_is_full():
    """A full batch has nothing to wait for."""
    model = Puppet()
    batcher = make(model, max_wait_s=10, max_batch_size=2)
    await asyncio.gather(batcher.submit(rows(1)), batcher.submit(rows(2)))
    assert model.batches == [[1, 2]]
    assert asyncio.get_running_loop().now == 0


async def test_cancelling_one_leaves_the_others():
    """Of three callers one leaves: the other two are answered, and its row never reaches the model."""
    model = Puppet()
    batcher = make(model)
    tasks = [asyncio.create_task(batcher.submit(rows(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert values(answers[0]) == [1]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert values(answers[2]) == [3]
    assert model.batches == [[1, 3]]


async def test_model_is_not_called_when_all_have_left():
    """Nobody waits for an answer: nothing runs."""
    model = Puppet()
    batcher = make(model)
    tasks = [asyncio.create_task(batcher.submit(rows(n, n))) for n in (1, 2)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns()
    assert model.batches == []
    assert batcher.waiting_rows == 0
    assert batcher.in_flight == 0


async def test_leaving_while_the_batch_runs_hurts_nobody():
    """A caller who leaves during the run is not answered, its neighbours are; its rows ran in vain: counted."""
    executor, reports = PuppetExecutor(), []
    batcher = make(Puppet(), executor=executor, on_batch=reports.append)
    tasks = [asyncio.create_task(batcher.submit(numbers)) for numbers in (rows(1, 1, 1), rows(2))]
    await turns()
    tasks[0].cancel()
    await turns()
    executor.finish()
    assert values(await tasks[1]) == [2]
    third = asyncio.create_task(batcher.submit(rows(3)))
    await turns()
    executor.finish()
    assert values(await third) == [3]
    assert [(report.size, report.unwanted) for report in reports] == [(4, 3), (1, 0)]


async def test_leaving_makes_room():
    """The rows of a caller who left count no longer: exactly their room is free again."""
    executor = PuppetExecutor()
    batcher = make(Puppet(), executor=executor, max_queue=4)
    running = asyncio.create_task(batcher.submit(rows(0)))
    await turns()
    leaver = asyncio.create_task(batcher.submit(rows(1, 1, 1)))
    await turns()
    leaver.cancel()
    await turns()
    full = asyncio.create_task(batcher.submit(rows(2, 2, 2, 2)))
    await turns()
    with pytest.raises(QueueFull):
        await batcher.submit(rows(3))
    executor.finish()
    await turns()
    executor.finish()
    assert values(await full) == [2, 2, 2, 2]
    assert values(await running) == [0]


async def test_queue_limit_is_exact():
    """With room for N rows, N are admitted and row N+1 is refused, at once and alone."""
    executor = PuppetExecutor()
    batcher = make(Puppet(), executor=executor, max_queue=5, cost=lambda count: count / 100)
    tasks = [asyncio.create_task(batcher.submit(rows(0)))]
    await turns()
    tasks += [asyncio.create_task(batcher.submit(rows(n))) for n in range(1, 6)]
    await turns()
    with pytest.raises(QueueFull, match="5 images are waiting; 1 more would exceed the queue's 5") as refusal:
        await batcher.submit(rows(6))
    assert refusal.value.retry_after_s == pytest.approx(0.05)
    while executor.waiting:
        executor.finish()
        await turns()
    assert [values(await task) for task in tasks] == [[n] for n in range(6)]


async def test_oversize_request_is_admitted_whole_or_not():
    """A request of many parts that does not fit takes no room at all, and says so if it never will."""
    executor = PuppetExecutor()
    batcher = make(Puppet(), max_batch_size=2, max_queue=5, executor=executor)
    with pytest.raises(InvalidArgument, match="images: 6 in one request; allowed are up to 5"):
        await batcher.submit(rows(*range(6)))
    assert batcher.waiting_rows == 0
    running = asyncio.create_task(batcher.submit(rows(0)))
    await turns()
    waiting = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    with pytest.raises(QueueFull):
        await batcher.submit(rows(*range(5)))
    assert batcher.waiting_rows == 1
    for _ in range(2):
        executor.finish()
        await turns()
    await asyncio.gather(running, waiting)


async def test_deadline_that_cannot_be_met_is_refused_on_arrival():
    """If the rows already waiting need longer than the caller has, it is told so at once."""
    executor = PuppetExecutor()
    batcher = make(Puppet(), executor=executor, cost=lambda count: count * 1.0)
    tasks = [asyncio.create_task(batcher.submit(rows(0)))]
    await turns()
    tasks.append(asyncio.create_task(batcher.submit(rows(1, 1, 1))))
    await turns()
    with pytest.raises(DeadlineTooShort, match=r"2\.0000 s are left, too few for 4 images"):
        await batcher.submit(rows(2), deadline=2.0)
    for task in tasks:
        task.cancel()


async def test_deadline_passing_in_the_queue_is_answered_then():
    """A request whose deadline passes while another batch runs is answered at its deadline, and never runs."""
    model, executor, loop = Puppet(), PuppetExecutor(), asyncio.get_running_loop()
    batcher = make(model, executor=executor)
    running = asyncio.create_task(batcher.submit(rows(0)))
    await turns()
    patient = asyncio.create_task(batcher.submit(rows(1), deadline=9.0))
    with pytest.raises(DeadlineExpired):
        await batcher.submit(rows(2), deadline=0.5)
    assert loop.now == pytest.approx(0.5)
    executor.finish()
    await turns()
    executor.finish()
    assert values(await patient) == [1]
    assert values(await running) == [0]
    assert model.batches == [[0], [1]]


async def test_rows_past_their_deadline_never_run():
    """What has expired by the time its batch forms is answered so, and left out."""
    model = Puppet()
    batcher = make(model, max_wait_s=1.0, cost=lambda _: -1.0)
    late = asyncio.create_task(batcher.submit(rows(1), deadline=0.0))
    fine = asyncio.create_task(batcher.submit(rows(2), deadline=5.0))
    with pytest.raises(DeadlineExpired):
        await late
    assert values(await fine) == [2]
    assert model.batches == [[2]]


@pytest.mark.parametrize("guilty", [0, 3, 6])
async def test_failing_row_fails_only_its_own_request(guilty):
    """When a row makes the model fail, its request alone gets the error; everybody else is answered."""
    model = Puppet()
    model.guilty = {guilty}
    batcher = make(model)
    answers = await asyncio.gather(*(batcher.submit(rows(n)) for n in range(7)), return_exceptions=True)
    assert isinstance(answers.pop(guilty), ValueError)
    assert [values(answer) for answer in answers] == [[n] for n in range(7) if n != guilty]
    model.guilty = set()
    assert values(await batcher.submit(rows(guilty))) == [guilty]


async def test_failing_part_fails_the_whole_oversize_request():
    """Half an answer is none: the caller gets the error of the part that failed, and the queue is empty after."""
    model = Puppet()
    model.guilty = {1}
    batcher = make(model, max_batch_size=2)
    with pytest.raises(ValueError, match="breaks the model"):
        await batcher.submit(rows(*range(9)))
    await turns(20)
    assert batcher.waiting_rows == 0
    assert batcher.in_flight == 0


async def test_wrong_number_of_answers_is_an_error():
    """A model that answers fewer rows than it was asked is not trusted with any."""
    batcher = make(lambda payloads: np.concatenate(payloads)[:-1])
    with pytest.raises(RuntimeError, match="answered 2 rows to 3"):
        await batcher.submit(rows(1, 2, 3))


async def test_idle_batcher_does_no_work():
    """While nothing is asked, the event loop is not woken at all."""
    loop = asyncio.get_running_loop()
    batcher = make(Puppet())
    await batcher.submit(rows(1))
    before = loop.turns
    await asyncio.sleep(3600)
    assert loop.turns - before <= 2  # the sleep's own timer


async def test_close_fails_what_waits_and_refuses_the_rest():
    """At close the running batch still answers, what waits is told that the server is going, and so is all later."""
    executor = PuppetExecutor()
    batcher = make(Puppet(), executor=executor)
    running = asyncio.create_task(batcher.submit(rows(1)))
    await turns()
    waiting = asyncio.create_task(batcher.submit(rows(2)))
    await turns()
    batcher.close()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await batcher.submit(rows(3))
    executor.finish()
    assert values(await running) == [1]


async def test_reports_tell_sizes_and_times():
    """Each run is reported with its rows, how long each request waited, how long it ran, and what released it."""
    reports, loop = [], asyncio.get_running_loop()

    def slow(payloads):
        loop.now += 0.25
        return np.concatenate(payloads)

    batcher = make(slow, max_batch_size=3, on_batch=reports.append)
    await asyncio.gather(*(batcher.submit(rows(n)) for n in range(4)))
    assert [report.size for report in reports] == [3, 1]
    assert reports[0].inference_s == pytest.approx(0.25)
    assert reports[1].queue_s == [pytest.approx(0.25)]
    assert reports[0].release == "full"
