"""What comes of levels: where they saturate, their table and their plot."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "loadtests"))  # as Locust does

import report


def levels(*points):
    """Return levels of one workload: users, calls/s, p50 in ms."""
    return [
        {
            "stage": f"{users} users",
            "users": users,
            "figures": {
                "unary": {"rate": rate, "p50_ms": p50_ms, "p99_ms": 3 * p50_ms, "error_share": 0},
            },
        }
        for users, rate, p50_ms in points
    ]


SATURATES = levels((1, 500, 2.0), (2, 950, 2.1), (4, 1800, 2.2), (8, 2000, 4.0), (16, 2050, 7.8))


def test_saturation_is_where_more_users_only_wait_longer():
    """A service saturates at the last level at which throughput grew with the users."""
    assert report.saturation(SATURATES, "unary")["users"] == 4


def test_ramp_has_seen_enough_when_throughput_is_flat():
    """Two levels that add less than a tenth end a ramp, one does not."""
    assert [report.is_flat(SATURATES[:count]) for count in (1, 3, 4, 5)] == [False, False, False, False]
    assert report.is_flat(SATURATES + levels((32, 2040, 16)))


def test_table_marks_saturation():
    """The table has a line for each level, and one of them is where it saturates."""
    lines = report.table(SATURATES, mark_saturation=True).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("saturation")] == ["4"]
    assert len(lines) == 1 + len(SATURATES)


def test_plot_is_drawn(tmp_path):
    """Levels become a picture."""
    report.plot(SATURATES, tmp_path / "saturation.png")
    assert (tmp_path / "saturation.png").read_bytes().startswith(b"\x89PNG")
