"""Bearer tokens: the file, the check, and a server that wants them."""

import asyncio
import time

import grpc
import pytest
from conftest import start_server, wait_until
from credentials import entry
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import AsyncDigitClient, DigitClient, NotAuthenticated, PermissionDenied
from digits_server import errors
from digits_server.rpc import auth as tokens
from open_inference.v2 import inference_pb2

PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00+02:00"
FILE = (
    entry("web", "w" * 32, expires=FUTURE)
    + entry("ops", "o" * 32, ["admin"])
    + entry("gone", "g" * 32, ["classify", "admin"], expires=PAST)
)


@pytest.fixture(scope="module")
def server(toy_models, tmp_path_factory, transport):
    """A server that wants tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens.toml").write_text(FILE)
    flags = ["--default-model=toy-b", f"--transport={transport}", f"--token-file={folder / 'tokens.toml'}"]
    server = start_server(toy_models, folder, *flags)
    yield server
    assert server.stop() == 0


def ask_everything(server, *metadata):
    """Return the status of a call of each kind with some metadata."""
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(pixels=image_of(3).tobytes())
        calls = [
            lambda: stub.Classify(request, timeout=20, metadata=metadata),
            lambda: stub.ListModels(pb.ListModelsRequest(), timeout=20, metadata=metadata),
            lambda: next(
                stub.ClassifyStream(iter([pb.ClassifyStreamRequest(request=request)]), timeout=20, metadata=metadata)
            ),
            lambda: channel.unary_unary("/digits.v1.DigitClassifier/Classify")(b"\xff", timeout=20, metadata=metadata),
        ]
        return [_outcome(call) for call in calls]


def _outcome(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def test_a_token_opens_every_call(server):
    """Who shows a good token is served, over the clients too; garbage then gets the answer that garbage gets."""
    outcomes = ask_everything(server, ("authorization", "Bearer " + "w" * 32))
    assert [code for code, _ in outcomes] == ["OK", "OK", "OK", "INVALID_ARGUMENT"]
    with DigitClient(server.address, token="w" * 32, timeout_s=20) as client:
        assert client.classify(image_of(3)).digit == 3


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "token_missing"),
        ([("authorization", "Bearer wrong")], "token_wrong"),
        ([("authorization", "Bearer ")], "token_wrong"),
        ([("authorization", "")], "token_wrong"),
        ([("authorization", "w" * 32)], "token_wrong"),
        ([("authorization", "Basic " + "w" * 32)], "token_wrong"),
        ([("authorization", "Bearer " + "w" * 33)], "token_wrong"),
        ([("authorization", "Bearer " + "w" * 32)] * 2, "token_wrong"),
        ([("authorization-bin", b"Bearer " + b"w" * 32)], "token_missing"),
        ([("authorization", "Bearer " + "g" * 32)], "token_expired"),
    ],
)
def test_without_a_good_token_all_are_told_the_same(server, metadata, reason):
    """Missing, wrong or expired: every call is UNAUTHENTICATED in the same words; only the metrics know which."""
    sample = f'digits_rejected_total{{reason="{reason}"}}'
    before = server.metric(sample)
    assert set(ask_everything(server, *metadata)) == {("UNAUTHENTICATED", "a valid bearer token is needed")}
    assert server.metric(sample) == before + 4


def test_a_token_for_other_things_is_denied(server):
    """A token without the scope is PERMISSION_DENIED; the clients have an error for each of the two."""
    outcomes = ask_everything(server, ("authorization", "Bearer " + "o" * 32))
    assert set(outcomes) == {("PERMISSION_DENIED", "the token's scopes do not include classify")}
    with DigitClient(server.address, token="o" * 32, timeout_s=20) as client, pytest.raises(PermissionDenied):
        client.classify(image_of(3))

    async def ask():
        async with AsyncDigitClient(server.address, token="nobody's", timeout_s=20) as client:
            await client.classify(image_of(3))

    with pytest.raises(NotAuthenticated):
        asyncio.run(ask())


def test_probes_and_the_contract_are_open(server):
    """Probes of both kinds need no token, nor does reflection; whatever else the Open Inference Protocol has does."""
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "digits.v1.DigitClassifier" in ProtoReflectionDescriptorDatabase(channel).get_services()
        methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
        calls = {name: channel.unary_unary(f"/inference.GRPCInferenceService/{name}") for name in methods}
        codes = {name: _outcome(lambda call=call: call(b"", timeout=20))[0] for name, call in calls.items()}
    assert {name for name, code in codes.items() if code == "OK"} == {"ServerLive", "ServerReady"}
    assert set(codes.values()) == {"OK", "UNAUTHENTICATED"}
    assert {tokens.scope(f"/inference.GRPCInferenceService/{name}") for name in methods} == {None, "classify"}


def test_tokens_are_exchanged_without_a_restart(toy_models, tmp_path):
    """A new file's tokens are good and the old ones are not; a broken or missing file changes nothing."""
    file = tmp_path / "tokens.toml"
    file.write_text(entry("web", "old"))
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--token-file={file}")
    refused, taken = (
        f'digits_secret_loads_total{{result="{result}",secret="tokens"}}' for result in ("refused", "taken")
    )
    file.write_text("[web]\nsha256 = 'short'")
    wait_until(lambda: server.metric(refused) == 1)
    file.unlink()
    wait_until(lambda: server.metric(refused) == 2)
    assert ask_everything(server, ("authorization", "Bearer old"))[0] == ("OK", "")
    file.write_text(entry("web", "new"))
    wait_until(lambda: server.metric(taken) == 2)
    assert ask_everything(server, ("authorization", "Bearer new"))[0] == ("OK", "")
    assert ask_everything(server, ("authorization", "Bearer old"))[0][0] == "UNAUTHENTICATED"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no token"),
        ("[web", "Expected ']'"),
        ("web = 1", r"\[web\] sha256: not 64 hexadecimal digits"),
        ('[web]\nsha256 = "abc"', r"\[web\] sha256: not 64 hexadecimal digits"),
        (entry("web", "t", []), r"\[web\] scopes: \[\]; allowed is a list of classify, admin"),
        (entry("web", "t", ["root"]), r"scopes: \['root'\]; allowed is a list of classify, admin"),
        (entry("web", "t", expires="2030-01-01T00:00:00"), "expires: .* allowed is a time with its zone"),
        (entry("web", "t", expires="'soon'"), "expires: soon; allowed is a time with its zone"),
        (entry("web", "t", scope="'admin'"), "scope: no such key; allowed are sha256, scopes, expires"),
    ],
)
def test_wrong_token_file_is_refused(text, complaint):
    """What is wrong in a token file is said with the entry and the key; a token is never repeated."""
    with pytest.raises(ValueError, match=complaint):
        tokens.parse(text.encode())


def test_what_is_not_listed_needs_admin():
    """A method that nobody thought of is not open by accident."""
    assert tokens.scope("/digits.v1.DigitClassifier/Classify") == "classify"
    assert tokens.scope("/inference.GRPCInferenceService/ServerLive") is None
    assert tokens.scope("/digits.v1.Anything/New") == "admin"


def test_every_method_of_the_contract_is_listed():
    """Callers of the public services need `classify`, never `admin`, whatever the contract grows by."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert tokens.scope(f"/{service.full_name}/{method.name}") == "classify"


def test_all_entries_are_compared(monkeypatch):
    """Which entry matches, or whether one does, doesn't change how many are compared."""
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(one) or one == other)
    entries = tokens.parse(FILE.encode())
    for shown in ("w" * 32, "g" * 32, "x"):
        compared.clear()
        with pytest.raises(errors.Rejected):
            tokens.check([("authorization", f"Bearer {shown}")], entries, "admin")
        assert len(compared) == len(entries)


def test_expiry_is_a_moment(monkeypatch):
    """A token is good until the second it expires."""
    (entry_,) = tokens.parse(entry("web", "t", expires=FUTURE).encode())
    metadata = [("authorization", "bearer t")]
    monkeypatch.setattr(time, "time", lambda: entry_.expires - 0.001)
    tokens.check(metadata, [entry_], "classify")
    monkeypatch.setattr(time, "time", lambda: entry_.expires)
    with pytest.raises(errors.Unauthenticated):
        tokens.check(metadata, [entry_], "classify")
