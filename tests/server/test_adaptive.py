"""How many requests a batch waits for."""

import pytest

from digits_server.inference.adaptive import ALL, COUNT_EVERY, WINDOW_S, Concurrency


class Times:
    """A machine whose clocks the test moves."""

    def __init__(self):
        self.wall = self.thread = self.process = 0.0

    def work(self, share, *, other_threads=0.0):
        """Let a window pass in which the event loop computes for `share` of the time."""
        self.wall += WINDOW_S
        self.thread += share * WINDOW_S
        self.process += (share + other_threads) * WINDOW_S


@pytest.fixture
def times():
    return Times()


def estimator_on(times, cpus=2):
    return Concurrency(
        cpus, clock=lambda: times.wall, thread_time=lambda: times.thread, process_time=lambda: times.process
    )


def test_lone_caller_is_never_made_to_wait(times):
    """However busy it keeps the process, and for however long, a caller of one request at a time waits for nobody."""
    estimate = estimator_on(times)
    for _ in range(10 * COUNT_EVERY):
        times.work(1.0)
        assert estimate(1, "joined", 1) == 1


def test_nobody_waits_while_there_is_time_to_spare(times):
    """Below the limit of load requests run as they come, even if there are many callers."""
    estimate = estimator_on(times)
    for _ in range(10 * COUNT_EVERY):
        times.work(0.5)
        assert estimate(8, "joined", 8) == 1


@pytest.mark.parametrize(("share", "others", "cpus"), [(0.9, 0.0, 2), (0.4, 0.5, 1)])
def test_half_of_the_callers_are_waited_for_when_busy(times, share, others, cpus):
    """Whether the event loop or the only CPU is the bottleneck: once counted, half of the callers make a batch."""
    estimate = estimator_on(times, cpus)
    times.work(share, other_threads=others)
    assert estimate(2, "joined", 2) == 1
    while estimate(2, "joined", 2) != ALL:
        times.work(share, other_threads=others)
    assert estimate(64, "quiet", 64) == 32
    assert estimate(33, "joined", 33) == 32


def test_stream_of_single_requests_counts_as_several_callers(times):
    """Requests that run one by one while others are in flight, as those of a stream do, are counted like callers."""
    estimate = estimator_on(times)
    times.work(1.0)
    answers = [estimate(1, "joined", 2) for _ in range(COUNT_EVERY)]
    assert answers[-1] == ALL
    assert estimate(64, "quiet", 64) == 32


def test_callers_who_left_are_forgotten(times):
    """When fewer come than were expected, fewer are expected, and soon the last one waits for nobody."""
    estimate = estimator_on(times)
    times.work(1.0)
    assert estimate(64, "joined", 64) == 32
    expected = [estimate(1, "quiet", 1) for _ in range(6)]
    assert expected == [16, 8, 4, 2, 1, 1]


def test_callers_are_counted_again_from_time_to_time(times):
    """Every so many batches one waits until nobody else comes; as the only way to see that there are more."""
    estimate = estimator_on(times)
    times.work(1.0)
    answers = [estimate(4, "joined", 4) for _ in range(3 * COUNT_EVERY)]
    assert [number for number, answer in enumerate(answers, 1) if answer == ALL] == [16, 32, 48]
