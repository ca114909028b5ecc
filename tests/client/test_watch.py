"""What is made of a server's metrics."""

import pytest

from digits_client import watch

PAGE = """\
# HELP grpc_server_handled_total RPCs that ended.
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{{grpc_method="Classify",grpc_code="OK"}} {ok} {time}
grpc_server_handled_total{{grpc_method="ModelInfer",grpc_code="INTERNAL"}} {failed}
grpc_server_handled_total{{grpc_method="ClassifyStream",grpc_code="OK"}} 1e9
grpc_server_handled_total{{grpc_method="ClassifyStream",grpc_code="INTERNAL"}} {failed}
grpc_server_handled_total{{grpc_method="ListModels",grpc_code="INTERNAL"}} {ok}
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="0.001"}} {fast}
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="0.002"}} {ok}
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="+Inf"}} {ok}
grpc_server_handling_seconds_bucket{{grpc_method="ClassifyStream",le="+Inf"}} {ok}
digits_predictions_total{{digit="3"}} {images}
digits_predictions_total{{digit="}}"}} {images}
digits_batch_size_count{{model="a"}} {batches}
digits_batch_size_sum{{model="a"}} {images}
digits_queue_depth{{model="a"}} 3
digits_queue_depth{{model="b"}} 1
digits_input_drift{{model="a"}} NaN
"""


def reading(at_s, ok, failed, fast, images, batches, time=""):
    page = PAGE.format(ok=ok, failed=failed, fast=fast, images=images, batches=batches, time=time)
    return watch.parse(page, at_s)


@pytest.mark.parametrize("time", ["", "1395066363000"], ids=["a server's", "federated by Prometheus"])
def test_figures_are_of_what_happened_between_readings(time):
    """Counts, percentiles in buckets and batch size are of the time between; streams are no calls; depth is now's."""
    before = reading(100, ok=10, failed=0, fast=5, images=10, batches=10, time=time)
    after = reading(104, ok=20, failed=2, fast=13, images=50, batches=20, time=time)
    assert watch.figures([before, after]) == watch.Figures(
        seconds=4,
        images=80,
        calls=12,
        failed_calls=2,
        failed_streams=2,
        p50_s=pytest.approx(0.000625),
        p99_s=pytest.approx(0.00195),
        mean_batch_size=4,
        queue_depth=4,
    )
    assert watch.line(watch.figures([before, after])).split() == (
        ["20.0", "images/s", "3.0", "calls/s", "1.0", "failed/s", "p50", "0.625", "ms", "p99", "1.950", "ms"]
    )


def test_counters_that_fell_began_anew():
    """After a restart everything counted since is what has been gained, as Prometheus has it: no rate is negative."""
    before = reading(100, ok=1000, failed=50, fast=800, images=5000, batches=900)
    after = reading(104, ok=10, failed=2, fast=8, images=50, batches=10)
    gained = watch.figures([before, after])
    assert (gained.calls, gained.failed_calls, gained.failed_streams, gained.images) == (12, 2, 2, 100)
    assert (gained.mean_batch_size, gained.p50_s) == (5, pytest.approx(0.000625))
    later = reading(108, ok=2000, failed=2, fast=8, images=50, batches=10)
    assert watch.figures([before, after, later]).calls == 2002  # more than before the restart: seen on the way


def test_one_of_several_servers_is_restarted():
    """What the others have counted before is not counted again."""

    def both(at_s, one, other):
        page = '{name}{{instance="{instance}",grpc_method="Classify",{more}}} {count}'
        rows = [
            page.format(name=name, instance=instance, more=more, count=count)
            for name, more in ((watch.RPCS, 'grpc_code="OK"'), (watch.LATENCY, 'le="+Inf"'))
            for instance, count in (("a", one), ("b", other))
        ]
        return watch.parse("\n".join(sorted(rows)) + "\n", at_s)

    assert watch.figures([both(0, 1000, 1000), both(1, 1010, 5)]).calls == 15


def test_pages_of_others_are_refused():
    """A page that is no Digits server's, or no metrics page at all, is a ValueError."""
    for page in ("up 1\n", "<html>no metrics</html>"):
        with pytest.raises(ValueError, match=r"\w"):
            watch.parse(page, 0)
