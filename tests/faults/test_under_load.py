"""What callers see when something happens to a server at work: every call is counted, none is lost or wrong."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, prlimit, setrlimit

import grpc
import pytest
from conftest import ROOT, wait_until
from packages import image_of, write_package
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

ROLLS = int(os.environ.get("DIGITS_TEST_ROLLS", "3"))
"""Rolling restarts in a row; ten before a release."""
STORM_S = float(os.environ.get("DIGITS_TEST_STORM_S", "3"))
"""How long half of all callers leave; thirty seconds before a release."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@contextmanager
def connections(server, *all_data):
    """Keep a connection open for each of some bytes, which are sent on it."""
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as stack:
        for data in all_data:
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)).sendall(data)
        yield


@pytest.fixture
def many_files():
    """Let this process and its children open as many files as they may."""
    before = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (before[1], before[1]))
    yield
    setrlimit(RLIMIT_NOFILE, before)


def test_rolling_restarts_lose_no_call(start, saw):
    """Each worker is asked to end and replaced, one after the other, again and again: no caller of the SDK notices."""
    server = start()
    with Traffic(server.address, bare=0, sdk=6) as traffic:
        traffic.more(200)
        for _ in range(ROLLS):
            for pid in server.workers():
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: (now := server.workers()) and len(now) == 2 and pid not in now)
        traffic.more(200)
    saw(traffic)
    assert server.metric('digits_worker_restarts_total{reason="asked"}') == 2 * ROLLS
    assert server.stop() == 0


def test_old_connections_are_made_anew(start, saw):
    """A connection ends at its age while calls go on over it: its client connects again, and no call fails."""
    server = start("--max-connection-age-s=1")
    states = []
    with grpc.insecure_channel(server.address) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1")
        with Traffic(server.address, bare=4) as traffic:
            while states.count(grpc.ChannelConnectivity.READY) < 3:
                assert list(stub.Classify(request, timeout=20).digits) == [6]
    saw(traffic)
    assert server.stop() == 0


def test_killed_worker_costs_only_its_calls(start, saw):
    """SIGKILL under load: who was being answered by the dead worker is told UNAVAILABLE, everybody else is answered."""
    server = start()
    with Traffic(server.address, bare=0, sdk=4) as users, Traffic(server.address, bare=8) as traffic:
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.metric('digits_worker_restarts_total{reason="died"}') == 1)
        wait_until(lambda: len(server.workers()) == 2)
        traffic.more(200)
    saw(users, "UNAVAILABLE", who="SDK")
    saw(traffic, "UNAVAILABLE")
    assert server.stop() == 0


def test_hung_worker_costs_only_its_calls(start, saw):
    """SIGSTOP under load: a worker is replaced; calls on it fail then or at their deadline; the rest is right."""
    server = start()
    with Traffic(server.address, bare=8, timeout_s=5) as traffic:
        traffic.more(200)
        hung, other = server.workers()
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: server.metric('digits_worker_restarts_total{reason="hung"}') == 1)
        wait_until(lambda: len(server.workers()) == 2)
        assert hung not in server.workers()
        assert other in server.workers()
        traffic.more(200)
    saw(traffic, "UNAVAILABLE", "DEADLINE_EXCEEDED")
    # While a channel waits to connect anew, each call on it fails at once; so UNAVAILABLE may be many.
    assert traffic.outcomes["DEADLINE_EXCEEDED"] <= 2 * 8
    assert server.stop() == 0


def test_drain_answers_what_was_sent(start, saw):
    """SIGTERM to the whole server under load: every call is answered or told UNAVAILABLE, and the status is 0."""
    server = start()
    with Traffic(server.address, bare=8) as traffic:
        traffic.more(200)
        assert server.stop() == 0
    saw(traffic, "UNAVAILABLE", "CANCELLED")


@pytest.mark.usefixtures("many_files")
def test_idle_connections_are_in_nobodys_way(start, saw):
    """With 800 connections that do nothing, callers are answered; the drain does not wait for them."""
    server = start()
    with connections(server, *[PREFACE + SETTINGS] * 800):
        with Traffic(server.address, bare=4) as traffic:
            traffic.more(200)
        saw(traffic)
        assert server.stop() == 0


def test_half_open_connections_are_in_nobodys_way(start, saw):
    """Connections that stop in the middle of a handshake or a frame hold up neither callers nor the drain."""
    server = start()
    headers = b"\0\0\x20\x01\x04\0\0\0\x01" + b"\x83\x86"  # says 32 bytes, sends 2
    stuck = (b"", PREFACE[:10], PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS + headers)
    with connections(server, *stuck * 20):
        with Traffic(server.address, bare=4) as traffic:
            traffic.more(200)
        saw(traffic)
        assert server.stop() == 0


def test_slow_readers_are_in_nobodys_way(start, saw):
    """Callers who send and never read what they get: others are answered, and they end with the drain's grace."""
    server = start("--grace-s=1")
    message = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=image_of(1).tobytes() * 64, version="1"))

    def forever():
        while True:
            yield message

    with grpc.insecure_channel(server.address) as channel:
        calls = [pb_grpc.DigitClassifierStub(channel).ClassifyStream(forever()) for _ in range(5)]
        with Traffic(server.address, bare=4) as traffic:
            traffic.more(200)
        saw(traffic)
        assert server.stop() == 1  # the streams were cut
        for call in calls:
            call.cancel()


def test_dead_client_leaves_the_queue(start, saw):
    """A client killed in the middle of a stream takes what it has in the queue along; others are answered."""
    server = start("--workers=1", "--max-wait-ms=10000")
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import grpc, threading; from packages import image_of\n"
        "from digits.v1 import classifier_pb2 as pb, classifier_pb2_grpc as pb_grpc\n"
        "request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), model='toy-b')\n"
        "def some():\n"
        "    yield from [pb.ClassifyStreamRequest(request=request)] * 10\n"
        "    threading.Event().wait()\n"
        "list(pb_grpc.DigitClassifierStub(grpc.insecure_channel(sys.argv[1])).ClassifyStream(some()))\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code, server.address, *sys.path])
    wait_until(lambda: server.metric("digits_queue_depth") == 10)
    client.kill()
    client.wait()
    wait_until(lambda: server.metric("digits_queue_depth") == 0)
    assert server.metric("digits_batches_total") == 0
    assert server.stop() == 0


def test_worker_out_of_files_serves_those_it_has(start, saw):
    """A worker that may open no more files answers those who are connected, and newcomers once others have left."""
    server = start("--workers=1")
    pid = server.process.pid
    with Traffic(server.address, bare=4) as traffic:
        traffic.more(200)
        limits = prlimit(pid, RLIMIT_NOFILE)
        prlimit(pid, RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())) + 5, limits[1]))
        with connections(server, *[PREFACE + SETTINGS] * 50):
            traffic.more(200)
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1")
            answer = pb_grpc.DigitClassifierStub(channel).Classify(request, timeout=60, wait_for_ready=True)
            assert list(answer.digits) == [6]
        traffic.more(200)
        prlimit(pid, RLIMIT_NOFILE, limits)
    saw(traffic)
    assert server.stop() == 0


async def test_cancel_storm_touches_nobody_else(start, record_property):
    """Half of all calls are cancelled at random moments: the others are answered right; hardly anything ran in vain."""
    server = start("--workers=1")
    rng = random.Random(7)
    outcomes, unanswered = Counter(), Counter()
    end = time.monotonic() + STORM_S

    async def caller(stub):
        while time.monotonic() < end:
            digit, leaves = rng.randrange(10), rng.random() < 0.5
            call = stub.Classify(pb.ClassifyRequest(pixels=image_of(digit).tobytes(), version="1"), timeout=20)
            if leaves:
                await asyncio.sleep(rng.random() * 0.02)
                call.cancel()
            try:
                right = list((await call).digits) == [digit]
                outcomes["right" if right else "wrong"] += 1
            except asyncio.CancelledError:
                unanswered["left" if leaves else "lost"] += 1
            except grpc.aio.AioRpcError as error:
                unanswered[error.code().name] += 1

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        await asyncio.gather(*(caller(stub) for _ in range(64)))
    ran, unwanted = server.metric("digits_batch_size_sum"), server.metric("digits_cancelled_images_total")
    record_property("outcomes", {**outcomes, **unanswered, "ran": ran, "unwanted": unwanted})
    assert set(outcomes) == {"right"}
    assert set(unanswered) == {"left"}
    assert unwanted <= 0.02 * ran
    assert server.stop() == 0


def test_models_folder_that_vanishes_stops_nobody_who_serves(start, saw, tmp_path):
    """While the models folder is gone a killed worker can't be replaced; the other serves on, and both do later."""
    models, away = tmp_path / "models", tmp_path / "away"
    write_package(models / "toy-a" / "1")
    server = start(models=models)
    with Traffic(server.address, bare=4) as traffic:
        traffic.more(200)
        models.rename(away)
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.log.count("holds no model") >= 2)
        before = traffic.outcomes["right"]
        wait_until(lambda: traffic.outcomes["right"] > before + 50)
        away.rename(models)
        wait_until(lambda: len(server.workers()) == 2)
    saw(traffic, "UNAVAILABLE")
    assert server.stop() == 0


def test_full_disk_leaves_the_old_version_serving(start, saw, tmp_path):
    """A version that the disk has no room for is refused, and a killed worker replaced; with room, it takes over."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets tests mount nothing")
    try:
        write_package(disk / "toy-a" / "1")
        new, filler = write_package(tmp_path / "2", shift=1), disk / "filler"
        server = start("--reload-s=0.1", models=disk)
        with Traffic(server.address, bare=4) as traffic:
            filler.write_bytes(bytes(64 * 1024))
            with pytest.raises(OSError, match="No space left"):
                shutil.copytree(new, disk / "toy-a" / "2")
            wait_until(lambda: server.metric("digits_models_refused"))
            os.kill(server.workers()[0], signal.SIGKILL)
            wait_until(lambda: server.metric('digits_worker_restarts_total{reason="died"}') == 1)
            wait_until(lambda: len(server.workers()) == 2)
            assert set(traffic.versions) == {"1"}
            filler.unlink()
            shutil.copytree(new, disk / "toy-a" / "2", dirs_exist_ok=True)
            wait_until(lambda: not server.metric("digits_models_refused"))
            traffic.more(200)
        saw(traffic, "UNAVAILABLE")
        assert set(traffic.versions) == {"1", "2"}
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_no_decision_depends_on_the_time_of_day():
    """The clock may jump: durations, deadlines and back-offs are monotonic; wall time is only compared with dates."""
    readers = {
        path.name
        for path in (ROOT / "server" / "digits_server").rglob("*.py")
        if re.search(r"\btime\.time\(|\btime\.time_ns\(|datetime\.(now|utcnow)\(|\bfrom time import", path.read_text())
    }
    assert readers <= {
        "auth.py",  # tokens have a last day
        "tracing.py",  # spans are dated
    }


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (Debian: apt-get install gcc libc6-dev)")
def test_clock_that_jumps_is_in_nobodys_way(start, saw, tmp_path, monkeypatch):
    """The time of day leaps by a day, forth and back, under load: callers are answered, and no worker is replaced."""
    library, off_by = tmp_path / "clock.so", tmp_path / "off-by"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c")], check=True)
    off_by.write_text("0")
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(library))
        environment.setenv("CLOCK_OFF_BY", str(off_by))
        server = start("--access-log-sample=1")
    workers = server.workers()

    def shows(days):
        dates = re.findall(r'"time": "(\S+)', server.log)
        return dates[-1] == str(date.today() + timedelta(days=days))  # noqa: DTZ011 - logs are in local time

    with Traffic(server.address, bare=4, timeout_s=5) as traffic:
        for days in (1, -1, 0):
            off_by.write_text(str(days * 86400))
            wait_until(lambda days=days: shows(days))
            traffic.more(200)
            assert server.workers() == workers
    saw(traffic)
    assert server.stop() == 0
