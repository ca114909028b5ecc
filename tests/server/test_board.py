"""Numbers in shared memory: what one process counts another can read, whatever becomes of the first."""

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from digits_server.metrics import recorder as metrics
from digits_server.metrics.board import Board, Key, share
from digits_server.metrics.boards import Boards
from digits_server.metrics.definitions import Family

BOUNDS = (0.1, 0.5, 0.9)
COUNTER, DEPTH = Family("counter", "c", "text", ("a",)), Family("gauge", "g", "text")
NEWEST = Family("gauge", "n", "text", across="max")
HISTOGRAM = Family("histogram", "h", "text", ("a",), BOUNDS, has_exemplars=True)


@pytest.fixture
def page(monkeypatch):
    """What a scrape of some boards shows."""
    monkeypatch.setattr(metrics.families, "FAMILIES", (COUNTER, DEPTH, NEWEST, HISTOGRAM))

    def page(*living, dead=()):
        read, registry = Boards(), CollectorRegistry()
        for board in (*living, *dead):
            read.add(board)
        for board in dead:
            read.bury(board)
        registry.register(metrics._Counted(read))
        return registry

    return page


def test_histogram_counts_like_prometheus_own(page):
    """Observed one by one or many at once, numbers give the buckets, count and sum that prometheus_client gives."""
    values = [0.0, 0.1, 0.10001, 0.5, 0.7, 0.9, 0.95, 3.0] * 10
    theirs, board = CollectorRegistry(), Board()
    for value in values[:7]:
        board.histogram(HISTOGRAM, "m")(value)
    for some in (values[7:], []):
        board.histogram_of_many(HISTOGRAM, "m")(some)
    single = Histogram("h", "text", ["a"], buckets=BOUNDS, registry=theirs)
    for value in values:
        single.labels("m").observe(value)
    labels = [{"a": "m", "le": le} for le in ("0.1", "0.5", "0.9", "+Inf")]
    for name, label_sets in {"h_bucket": labels, "h_count": [{"a": "m"}], "h_sum": [{"a": "m"}]}.items():
        for label_set in label_sets:
            expected = theirs.get_sample_value(name, label_set)
            assert page(board).get_sample_value(name, label_set) == pytest.approx(expected), (name, label_set)


def test_what_the_dead_have_counted_stays(page):
    """Counters and histograms of the dead and the living add up; gauges are those of the living alone."""
    dead, living = Board(), Board()
    for board, amount in ((dead, 2), (living, 3)):
        board.count(COUNTER, "x", by=amount)
        board.histogram(HISTOGRAM, "x")(0.3)
        board.gauge(DEPTH, amount)
    registry = page(living, dead=[dead])
    assert registry.get_sample_value("c_total", {"a": "x"}) == 5
    assert registry.get_sample_value("h_count", {"a": "x"}) == 2
    assert registry.get_sample_value("g") == 3


def test_gauges_of_several_processes_become_one(page):
    """Gauges add up, or the largest counts, as their family says; one that was cleared is not shown."""
    first, second, third = Board(), Board(), Board()
    for board, amount in ((first, 2), (second, 3)):
        board.gauge(DEPTH, amount)
        board.gauge(NEWEST, amount)
    third.gauge(DEPTH, 100)()
    registry = page(first, second, third)
    assert registry.get_sample_value("g") == 5
    assert registry.get_sample_value("n") == 3
    assert page(third).get_sample_value("g") is None


def test_watched_gauge_is_asked_at_each_heartbeat(page):
    """A gauge given as a function shows what that returned at the last heartbeat."""
    board, waiting = Board(), [1]
    board.gauge(DEPTH, lambda: len(waiting))
    waiting.append(2)
    assert page(board).get_sample_value("g") == 1
    board.beat()
    assert page(board).get_sample_value("g") == 2


def test_exemplars_lead_to_traces(page):
    """A bucket shows the last observation that was remembered with its trace id, of whichever process."""
    first, second = Board(), Board()
    for board, trace in ((first, b"old" + bytes(13)), (second, b"new" + bytes(13))):
        board.histogram(HISTOGRAM, "x")(0.3)
        board.exemplars(HISTOGRAM, "x")(0.3, trace)
    text = generate_latest(page(first, second)).decode()
    assert f'h_bucket{{a="x",le="0.5"}} 2.0 # {{trace_id="{b"new".hex()}{"00" * 13}"}} 0.3 ' in text
    assert text.count("trace_id") == 1


def test_nothing_is_lost_when_a_process_is_killed():
    """What another process had counted until the moment of its death can be read afterwards."""
    code = (
        "import os, signal, sys\n"
        "from digits_server.metrics.board import Board\n"
        "from digits_server.metrics.definitions import Family\n"
        "board = Board(int(sys.argv[1]))\n"
        "board.count(Family('counter', 'c', 'text', ('a',)), 'x', by=42)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with share() as memory:
        file = memory.fileno()
        died = subprocess.run([sys.executable, "-c", code, str(file)], pass_fds=[file], check=False)
        board = Board(file)
    assert died.returncode == -9
    key = Key(COUNTER, ("x",), Board().cell(COUNTER, "x"))
    assert board.numbers(key) == [42]


def test_reader_is_told_before_anything_is_counted():
    """Each set of labels is made known once, when its cells are still zero."""
    told = []
    board = Board(on_key=lambda key: told.append((key, board.numbers(key))))
    for _ in range(2):
        board.count(COUNTER, "x")
        board.histogram(HISTOGRAM, "x")(1)
    assert [(key.family, numbers) for key, numbers in told] == [(COUNTER, [0]), (HISTOGRAM, [0] * 5)]
    assert board.keys == [key for key, _ in told]
