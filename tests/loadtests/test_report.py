"""What comes of results: where the knee is, how two runs compare, and the plot."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "loadtests"))  # as Locust does

import report


def levels(*points):
    """Return levels of one workload: users, calls/s, p50 in ms; and a phase of the server, which is no workload."""
    return [
        {
            "stage": f"{users} users",
            "users": users,
            "figures": {
                "unary": {"rate": rate, "p50_ms": p50_ms, "p99_ms": 3 * p50_ms, "error_share": 0},
                "unary queue": {"rate": rate, "p50_ms": 0.01},
            },
        }
        for users, rate, p50_ms in points
    ]


SATURATES = levels((1, 500, 2.0), (2, 950, 2.1), (4, 1800, 2.2), (8, 2000, 4.0), (16, 2050, 7.8))


def test_knee_is_where_more_users_only_wait_longer():
    """The knee is the last level at which throughput grew with the users."""
    assert report.knee(SATURATES, "unary")["users"] == 4


def test_ramp_has_seen_enough_when_throughput_is_flat():
    """Two levels that add less than a tenth end a ramp, one does not."""
    assert [report.is_flat(SATURATES[:count]) for count in (1, 3, 4, 5)] == [False, False, False, False]
    assert report.is_flat(SATURATES + levels((32, 2040, 16)))


def test_table_marks_the_knee():
    """The table has a line for each level, and one of them is the knee."""
    lines = report.table(SATURATES, mark_knee=True).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("knee")] == ["4"]
    assert len(lines) == 1 + len(SATURATES)


def test_plot_is_drawn(tmp_path):
    """Levels become a picture."""
    report.plot(SATURATES, tmp_path / "knee.png")
    assert (tmp_path / "knee.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ({"rate": 76}, "same"),
        ({"rate": 74}, "WORSE"),
        ({"rate": 126}, "better"),
        ({"p99_ms": 12.4}, "same"),
        ({"p99_ms": 12.6}, "WORSE"),
        ({"p99_ms": 7.4}, "better"),
        ({"error_share": 0.01}, "WORSE"),
    ],
)
def test_comparison_knows_what_is_worse(now, verdict):
    """A lower rate, a higher latency or errors beyond the tolerance are worse; less than that is noise."""
    before = {"unary": {"rate": 100, "p99_ms": 10, "error_share": 0}}
    table, is_fine = report.compare(before, {"unary": now}, 0.25)
    assert table.splitlines()[-1].split()[-1] == verdict
    assert is_fine == (verdict != "WORSE")


def test_comparison_leaves_out_what_only_one_run_has():
    """Workloads of one run alone, and figures that a run could not measure, are not compared."""
    table, is_fine = report.compare({"unary": {"rate": None}}, {"unary": {"rate": 5}, "sdk": {"rate": 5}}, 0.25)
    assert (len(table.splitlines()), is_fine) == (1, True)
