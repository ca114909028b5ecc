"""grpc's errors become ours."""

import grpc
import pytest

from digits_client import CallError, DigitsError, _errors


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
