"""Several workers under a supervisor: one port, one page, and whoever dies or hangs is replaced."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import grpc
import pytest
from conftest import wait_until
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

HANDLED = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify"'


def classify(server, calls=1):
    """Call on a connection of its own, that many times; return the answers' digits."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1")
        return [stub.Classify(request, timeout=20, wait_for_ready=True).digits[0] for _ in range(calls)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_share_the_port_and_their_numbers_add_up(start):
    """Connections reach both workers; the page counts every call once, whoever answered it."""
    server = start()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: classify(server, 5), range(40))) == [[6] * 5] * 40
    assert server.metric(HANDLED) == 200
    assert server.metric("digits_predictions_total") == 200
    cpu = [server.metric(f'process_cpu_seconds_total{{worker="{worker}"}}') for worker in (0, 1, "supervisor")]
    assert all(cpu)
    assert server.stop() == 0


def test_killed_worker_is_replaced_and_its_numbers_stay(start):
    """After SIGKILL another worker takes the place at once; what the dead one had reported is not lost."""
    server = start()
    before = server.workers()
    for _ in range(20):
        classify(server)
    assert server.metric(HANDLED) == 20  # a scrape asks workers what they have counted
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(server.workers()) == 2 and before[0] not in server.workers())
    for _ in range(20):
        classify(server)
    assert server.metric(HANDLED) == 40
    assert server.metric('digits_worker_restarts_total{reason="died"}') == 1
    assert server.stop() == 0


def test_workers_end_with_their_supervisor(start):
    """When the supervisor is killed, its workers drain and are gone."""
    server = start()
    workers = server.workers()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(alive, workers)))


def test_crash_loop_gives_up(start):
    """When new workers die again and again, the server says so and ends with status 1."""
    server = start()
    killed = set()
    while server.process.poll() is None:
        for pid in set(server.children()) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert server.process.wait() == 1
    assert '"gave up"' in server.log
    assert 5 <= len(killed) <= 10


def test_worker_that_cannot_be_started_is_tried_again(start):
    """A supervisor that may open no more files serves on with the workers it has, and fills the place when it may."""
    server = start()
    supervisor = server.process.pid
    files = Path(f"/proc/{supervisor}/fd")
    before, limits = len(list(files.iterdir())), prlimit(supervisor, RLIMIT_NOFILE)
    prlimit(supervisor, RLIMIT_NOFILE, (before + 3, limits[1]))  # enough for a pipe, not for a process
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_until(lambda: server.log.count("worker not started") >= 2)
    assert classify(server) == [6]
    prlimit(supervisor, RLIMIT_NOFILE, limits)
    wait_until(lambda: len(server.workers()) == 2)
    wait_until(lambda: len(list(files.iterdir())) == before)
    assert server.metric('digits_worker_restarts_total{reason="not_started"}') >= 2
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_second_signal_ends_at_once(start, workers):
    """A second SIGTERM ends a drain that would take long: status 1, no process left."""
    server = start("--max-wait-ms=10000", f"--workers={workers}")
    children = server.children()
    with grpc.insecure_channel(server.address) as channel:
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1")
        call = pb_grpc.DigitClassifierStub(channel).Classify.future(request, timeout=60)
        wait_until(lambda: server.metric("digits_queue_depth") == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"draining"' in server.log)
        assert server.stop() == 1
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    wait_until(lambda: not any(map(alive, children)))


def test_hangup_reloads_every_worker(start):
    """SIGHUP lets each worker look at its files."""
    server = start()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count('"reloading"') == 2)
    assert server.stop() == 0


def test_bad_setting_is_one_clear_line(toy_models, tmp_path, transport):
    """What workers can't do ends the start with status 2 and one complaint, as with a single process."""
    broken = tmp_path / "models"
    (broken / "toy-a" / "1").mkdir(parents=True)
    (broken / "toy-a" / "1" / "model.onnx").write_bytes(b"no model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, complaint in [
            ([f"--models={broken}"], f"--models: {broken} holds no model"),
            ([f"--models={toy_models}", f"--port={port}"], f"--port: can't listen on 127.0.0.1:{port}"),
        ]:
            command = [sys.executable, "-m", "digits_server", "--port=0", "--metrics-port=0", "--workers=2", *flags]
            ended = subprocess.run([*command, f"--transport={transport}"], capture_output=True, text=True, check=False)
            assert ended.returncode == 2
            assert len(re.findall(r"^Error: ", ended.stderr, re.MULTILINE)) == 1
            assert complaint in ended.stderr
            assert ended.stdout == ""


def test_second_server_on_the_port_is_refused(start, toy_models):
    """A port that workers share is not shared with another server."""
    server = start()
    port = server.address.rpartition(":")[2]
    for workers in (1, 2):
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "digits_server", f"--models={toy_models}", "--default-model=toy-a"),
                *(f"--port={port}", "--metrics-port=0", f"--workers={workers}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert f"--port: can't listen on 127.0.0.1:{port}" in ended.stderr
    assert server.stop() == 0


def test_nothing_piles_up_on_disk(start, monkeypatch):
    """Replaced workers, killed or drained, leave no file behind."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is too long a name for sockets
        monkeypatch.setenv("TMPDIR", folder)
        server = start()
        for number in (signal.SIGKILL, signal.SIGTERM):
            pid = server.workers()[0]
            os.kill(pid, number)
            wait_until(lambda pid=pid: not alive(pid) and len(server.workers()) == 2)
            # Each Envoy has a folder of its own while it lives, named by its process.
            assert {int(it.name.split("-")[2]) for it in Path(folder).iterdir()} <= set(server.workers())
        assert server.stop() == 0
        assert not list(Path(folder).iterdir())
