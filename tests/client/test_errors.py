"""grpc's errors become ours."""

import asyncio
import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import grpc
import pytest
from stub_server import fail

from digits_client import CallError, DigitsError, _errors
from digits_client.testing import FakeDigitClient

KINDS = [it for it in vars(_errors).values() if isinstance(it, type) and issubclass(it, DigitsError)]


class FakeRpcError(grpc.RpcError):
    def __init__(self, code, details="said so"):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_has_a_class(code):
    """Whatever grpc reports becomes a CallError with its code and details; only three are worth a retry."""
    error = _errors.from_rpc_error(FakeRpcError(code))
    assert isinstance(error, CallError)
    assert isinstance(error, DigitsError)
    assert (error.code, error.details) == (code, "said so")
    assert str(error) == f"{code.name}: said so"
    assert error.retryable == (code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})


def test_statuses_that_can_occur_have_their_own_class():
    """Only statuses that no Digits server sends fall back to the base class."""
    bases = {code.name for code in grpc.StatusCode if type(_errors.from_rpc_error(FakeRpcError(code))) is CallError}
    assert bases == {"OK", "ALREADY_EXISTS", "ABORTED"}


def test_tree_in_the_docstring_is_the_tree():
    """The drawing at the top of the module names every class."""
    for name, thing in vars(_errors).items():
        if isinstance(thing, type) and issubclass(thing, DigitsError):
            assert f" {name} " in f" {_errors.__doc__} ".replace("\n", " ")


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling_and_copying(kind, again):
    """Every class comes back from pickle and copy as itself, with its words, code and notes."""
    error = kind(grpc.StatusCode.NOT_FOUND, "said so") if issubclass(kind, CallError) else kind("said so")
    error.add_note("while testing")
    twin = again(error)
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_errors_cross_process_pools():
    """What a worker of a process pool raises arrives as it is; the pool neither hangs nor breaks."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool, pytest.raises(_errors.NotFound, match="NOT_FOUND: said so"):
        pool.submit(fail, 0).result(60)
    with spawn.Pool(1) as pool, pytest.raises(_errors.NotFound, match="NOT_FOUND: said so"):
        pool.map_async(fail, [0]).get(60)


async def test_errors_can_be_taken_from_exception_groups():
    """A task group's errors are split by class, and the group survives pickling."""
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(fail, 0))
    group = pickle.loads(pickle.dumps(raised.value))
    assert group.split(_errors.NotFound)[0].exceptions[0].details == "said so"


def test_a_client_says_that_it_cannot_be_pickled():
    """A client handed to another process is refused in words, not by a lock deep inside."""
    with FakeDigitClient(7) as client, pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(client)
