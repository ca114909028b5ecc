"""Models that come, change and go while real servers are called without pause: every call is counted."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from conftest import ServerProcess, start_server, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper
from packages import image_of, write_byte_graph, write_package
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from open_inference.v2 import inference_pb2, inference_pb2_grpc

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.ServingStatus.Value(name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


@pytest.fixture
def models(tmp_path):
    """A folder with toy/1 and other/1, and no more in it."""
    write_package(tmp_path / "models" / "toy" / "1")
    write_package(tmp_path / "models" / "other" / "1")
    return tmp_path / "models"


@pytest.fixture
def server(models, tmp_path, transport):
    server = start_server(models, tmp_path, "--default-model=toy", f"--transport={transport}", "--reload-s=0.1")
    yield server
    assert server.stop() == 0


def page(server, path):
    try:
        with urllib.request.urlopen(f"{server.metrics_url}{path}", timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def listed(server):
    """Return {"name/version": (state, reason)} of all versions."""
    states = {value: name.removeprefix("MODEL_STATE_") for name, value in pb.ModelState.items()}
    with grpc.insecure_channel(server.address) as channel:
        models = pb_grpc.DigitClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=20).models
    return {f"{model.name}/{model.version}": (states[model.state], model.reason) for model in models}


def serves(server, *versions):
    return lambda: [key for key, (state, _) in listed(server).items() if state == "SERVING"] == list(versions)


def test_renamed_version_takes_over_without_a_failed_call(server, models):
    """A package moved in by one rename answers from some moment on; no call fails or gets a wrong answer."""
    write_package(models / "toy" / ".2.partial", shift=1)
    with Traffic(server.address) as traffic:
        (models / "toy" / ".2.partial").rename(models / "toy" / "2")
        wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1", "2")


def test_slowly_copied_version_takes_over_when_it_is_whole(server, models, tmp_path):
    """A package that arrives file by file in pieces, with a long pause in the midst of one, serves when it is whole."""
    source = write_package(tmp_path / "elsewhere" / "2", shift=1)
    target = models / "toy" / "2"
    target.mkdir()
    with Traffic(server.address) as traffic:
        for name in ("reference.npz", "model.onnx"):
            content = (source / name).read_bytes()
            with (target / name).open("wb", buffering=0) as file:
                for start in range(0, len(content), 2048):
                    file.write(content[start : start + 2048])
                    os.fsync(file)
                    if name == "model.onnx" and start == 8 * 2048:  # so long that what is there counts as settled
                        wait_until(lambda: server.metric("digits_models_refused") == 1)
        wait_until(serves(server, "other/1", "toy/1", "toy/2"))
        assert server.metric("digits_models_refused") == 0
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1", "2")


def truncated(folder):
    model = write_package(folder) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1000])


def other_shape(folder):
    model = write_package(folder) / "model.onnx"
    graph = onnx.load(model)
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", 28, 28]))
    onnx.save(graph, model)


def answers_nan(folder):
    model = write_package(folder) / "model.onnx"
    graph = onnx.load(model)
    weights = onnx.numpy_helper.to_array(graph.graph.initializer[0])
    graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights * np.float32(np.nan), "weights"))
    onnx.save(graph, model)


def unreadable(folder):
    """For root, too, who may read files without permission: a folder in the file's place."""
    model = write_package(folder) / "reference.npz"
    model.unlink()
    model.mkdir()


BAD = {
    "2": (truncated, "model.onnx can't be loaded"),
    "3": (other_shape, "inputs are|can't be loaded"),
    "4": (
        lambda folder: write_package(folder, reference_error=0.01),
        "answers differ from the reference outputs by 0.01",
    ),
    "5": (answers_nan, "values from nan to nan.*answers differ from the reference outputs by nan"),
    "6": (unreadable, "reference.npz can't be read: IsADirectoryError"),
    "7": (lambda folder: write_package(folder, metadata={"digits.labels": "?"}), r"digits.labels is '\?', no JSON"),
}


def test_bad_versions_are_refused_and_the_old_one_serves_on(server, models):
    """Each kind of damage is named in ListModels, counted and logged, and no call notices any of them."""
    with Traffic(server.address) as traffic:
        for version, (write, _) in BAD.items():
            write(models / "toy" / version)
        wait_until(lambda: server.metric("digits_models_refused") == len(BAD))
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1")
    entries = listed(server)
    for version, (_, reason) in BAD.items():
        assert entries[f"toy/{version}"][0] == "REFUSED"
        assert re.search(reason, entries[f"toy/{version}"][1]), entries[f"toy/{version}"]
    assert server.log.count("model refused") == len(BAD)
    assert page(server, "/readyz")[0] == 200


def test_asking_for_a_refused_model_says_why(server, models):
    """NOT_FOUND, and the command, tell what was wrong with the model that was asked for, in one line."""
    write_package(models / "mine" / "1", gives_logits=True)
    write_package(models / "yours" / "v1")
    write_package(models / "theirs")
    wait_until(lambda: {"mine/1", "yours/v1", "theirs/"} <= set(listed(server)))
    wait_until(lambda: listed(server)["mine/1"][0] == "REFUSED")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        for model, reason in (
            ("mine", "version 1 was refused: .*softmax"),
            ("yours", "version v1 was refused: 'v1'"),
            ("theirs", "; what is there was refused: model.onnx lies in theirs/; what counts is theirs/1/model.onnx"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                stub.Classify(pb.ClassifyRequest(model=model, pixels=bytes(784)), timeout=20)
            assert error.value.code() == grpc.StatusCode.NOT_FOUND
            assert re.search(reason, error.value.details())
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(), timeout=20).models
        ready = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(ready=True), timeout=20).models
    said = {f"{model.name}/{model.version}": (model.state, model.reason) for model in index}
    assert [said[key][0] for key in ("mine/1", "yours/v1")] == ["UNAVAILABLE", "UNAVAILABLE"]
    assert "softmax" in said["mine/1"][1]
    assert ready
    assert {model.state for model in ready} == {"READY"}
    sample = Path(__file__).parents[2] / "docs" / "samples" / "7.png"
    command = [sys.executable, "-m", "digits_client", "classify", sample, "--model=mine", f"--server={server.address}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search("'mine' is not served; version 1 was refused: .*softmax", done.stdout + done.stderr)
    assert server.log.count('"no model"') == 2


def test_byte_graph_is_served(server, models):
    """A version with a byte graph takes over; bytes, and floats that are bytes, get the same answers from it."""
    write_byte_graph(write_package(models / ".2", shift=1), shift=1)
    (models / ".2").rename(models / "toy" / "2")
    wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    assert listed(server)["toy/2"] == ("SERVING", "")
    images = np.stack([image_of(digit) for digit in range(10)])
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        of_bytes, of_floats, of_others = (
            stub.Classify(request, timeout=20)
            for request in (
                pb.ClassifyRequest(pixels=images.tobytes()),
                pb.ClassifyRequest(vectors=(images / 255).ravel().tolist()),
                pb.ClassifyRequest(vectors=(images / 255.1).ravel().tolist()),
            )
        )
    assert list(of_bytes.digits) == [*range(1, 10), 0]
    assert of_bytes.probabilities == of_floats.probabilities
    assert list(of_others.digits) == list(of_bytes.digits)


def test_removed_version_rolls_back_and_replaced_one_takes_over(server, models):
    """Version 2 goes: version 1 answers. Version 1 is replaced by other files: they answer. No call fails."""
    package = write_package(models / "toy" / "2", shift=1)
    wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    with Traffic(server.address) as traffic:
        shutil.rmtree(package)
        wait_until(serves(server, "other/1", "toy/1"))
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("2", "1")

    other = write_package(models / ".new", shift=5)
    with Traffic(server.address) as traffic:
        for name in ("reference.npz", "model.onnx"):  # two steps: between them the package contradicts itself
            (other / name).replace(models / "toy" / "1" / name)
        wait_until(lambda: traffic.outcomes["wrong"])  # for a model that answers the digit itself
    assert traffic.versions == {"1": traffic.sent}
    assert {(call.answer - call.digit) % 10 for call in traffic.calls} == {0, 5}
    swap = min(call.end for call in traffic.calls if call.outcome == "wrong")
    assert all(call.start <= swap for call in traffic.calls if call.outcome == "right")


def test_pinned_version_answers_until_it_is_gone(server, models):
    """Callers of one version keep it when a newer one comes, and get NOT_FOUND from when it is removed."""
    with Traffic(server.address, model="toy", version="1") as traffic:
        write_package(models / "toy" / "2", shift=1)
        wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1")
    with Traffic(server.address, model="toy", version="1") as traffic:
        shutil.rmtree(models / "toy" / "1")
        wait_until(lambda: traffic.outcomes["NOT_FOUND"])
    assert set(traffic.outcomes) == {"right", "NOT_FOUND"}


def test_vanishing_folder_is_told_and_harms_nobody(server, models):
    """While the folder is away the metric says so; all calls are answered before, meanwhile and after."""
    with Traffic(server.address) as traffic:
        models.rename(models.with_name("elsewhere"))
        wait_until(lambda: server.metric("digits_models_unreadable") == 1)
        models.with_name("elsewhere").rename(models)
        wait_until(lambda: server.metric("digits_models_unreadable") == 0)
        write_package(models / "toy" / "2", shift=1)
        wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1", "2")
    assert "models can't be read; those that are loaded serve on" in server.log


def test_health_of_each_model(server, models):
    """A watcher of a model sees it come and go; whoever asks for one that never was is told so."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="new")
        with pytest.raises(grpc.RpcError) as error:
            stub.Check(request, timeout=20)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request, timeout=60)
        assert next(watch).status == UNKNOWN
        package = write_package(models / "new" / "1")
        assert next(watch).status == SERVING
        assert stub.Check(request, timeout=20).status == SERVING
        shutil.rmtree(package)
        assert next(watch).status == NOT_SERVING
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == SERVING
        watch.cancel()


def test_signal_looks_at_once(models, tmp_path, transport):
    """Without looks of its own, a server takes new models at SIGHUP."""
    server = start_server(models, tmp_path, "--default-model=toy", f"--transport={transport}", "--reload-s=0")
    write_package(models / "toy" / "2", shift=1)
    assert "toy/2" not in listed(server)
    server.process.send_signal(signal.SIGHUP)
    wait_until(serves(server, "other/1", "toy/1", "toy/2"))
    assert server.stop() == 0


def waiting_server(models, folder, *flags):
    """Start a server that is not going to be ready, on ports found free, and return when its probes answer."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    log_file = folder / "waiting.log"
    flags = (
        "--workers=1",
        "--strict-readiness",
        "--reload-s=0.1",
        f"--port={ports[0]}",
        f"--metrics-port={ports[1]}",
        *flags,
    )
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "digits_server", "--models", models, *flags],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    server = ServerProcess(process, f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", log_file)

    def is_up():
        assert process.poll() is None, server.log
        try:
            with grpc.insecure_channel(server.address) as channel:
                grpc.channel_ready_future(channel).result(1)
        except grpc.FutureTimeoutError:
            return False
        return True

    wait_until(is_up)
    return server


def health(server, service=""):
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status


def test_strict_server_waits_for_an_empty_folder_to_fill(tmp_path, transport):
    """It is up and says NOT_SERVING, 503 and UNAVAILABLE until the default model is there; then it is ready."""
    models = tmp_path / "models"
    models.mkdir()
    server = waiting_server(models, tmp_path, "--default-model=toy", f"--transport={transport}")
    assert page(server, "/readyz")[0] == 503
    assert page(server, "/healthz")[0] == 200
    assert [health(server, name) for name in ("", "digits.v1.DigitClassifier")] == [NOT_SERVING] * 2
    with Traffic(server.address, bare=1) as early:
        pass
    assert early.outcomes == {"UNAVAILABLE": early.sent}
    write_package(models / "other" / "1")
    wait_until(serves(server, "other/1"))
    assert (page(server, "/readyz")[0], health(server), health(server, "other")) == (503, NOT_SERVING, SERVING)
    write_package(models / "toy" / "1")
    wait_until(lambda: page(server, "/readyz")[0] == 200)
    assert (health(server), health(server, "toy")) == (SERVING, SERVING)
    assert server.stop() == 0


def test_strict_server_tells_the_open_inference_protocol_too(tmp_path, transport):
    """ServerReady says what the health service says: no until the default model is there, then yes."""
    models = tmp_path / "models"
    models.mkdir()
    server = waiting_server(models, tmp_path, "--default-model=toy", f"--transport={transport}")
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)

        def is_ready():
            return stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=20).ready

        assert not is_ready()
        write_package(models / "toy" / "1")
        wait_until(is_ready)
    assert server.stop() == 0


def test_strict_server_is_ready_when_nothing_is_refused(models, tmp_path, transport):
    """Bad packages keep it from becoming ready, though it answers; one that comes later does not take it away."""
    bad, misnamed = write_package(models / "toy" / "2", reference_error=1), write_package(models / "toy" / "v2")
    server = waiting_server(models, tmp_path, "--default-model=toy", f"--transport={transport}")
    assert (page(server, "/readyz")[0], health(server)) == (503, NOT_SERVING)
    with Traffic(server.address, bare=1) as traffic:
        pass
    assert traffic.outcomes == {"right": traffic.sent}
    wait_until(lambda: server.metric("digits_models_refused") == 2)
    shutil.rmtree(bad)
    wait_until(lambda: server.metric("digits_models_refused") == 1)
    assert page(server, "/readyz")[0] == 503
    shutil.rmtree(misnamed)
    wait_until(lambda: page(server, "/readyz")[0] == 200)
    write_package(models / "toy" / "3", reference_error=1)
    wait_until(lambda: server.metric("digits_models_refused") == 1)
    assert (page(server, "/readyz")[0], health(server)) == (200, SERVING)
    assert server.stop() == 0


def test_server_only_reads_its_models(tmp_path, transport):
    """On a disk that is full and mounted for reading only, it loads, verifies and serves as on any other."""
    disk, filler = tmp_path / "disk", "dd if=/dev/zero of=$0/filler bs=64k 2> /dev/null"
    disk.mkdir()
    write_package(tmp_path / "toy" / "1")
    mount = f"mount -t tmpfs -o size=1m tmpfs $0 && cp -r {tmp_path}/toy $0 && ! {filler} && mount -o remount,ro $0"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if subprocess.run([*namespace, mount, disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets tests mount nothing")
    script = f"{mount}; ! touch $0/toy/file 2> /dev/null; exec {sys.executable} -m digits_server --models $0"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*namespace, f"{script} --port=0 --metrics-port=0 --transport={transport}", disk],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process.stdout as output:
        address = re.search(r"gRPC (\S+)", output.readline())[1]
    with Traffic(address) as traffic:
        pass
    assert traffic.outcomes == {"right": traffic.sent}
    process.terminate()
    assert process.wait(30) == 0
