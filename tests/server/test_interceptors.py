"""How errors look from outside."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from digits_server import errors
from digits_server.rpc.status import explain


def details_of(error):
    return Status.FromString(dict(explain(error))["grpc-status-details-bin"])


def test_invalid_argument_carries_the_field():
    """Programs find field and fault in google.rpc.BadRequest."""
    status = details_of(errors.InvalidArgument("pixels", "783 bytes"))
    violation = BadRequest()
    assert status.details[0].Unpack(violation)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (violation.field_violations[0].field, violation.field_violations[0].description) == ("pixels", "783 bytes")


def test_full_queue_says_when_to_retry():
    """Programs find the delay in google.rpc.RetryInfo, grpc itself in the pushback trailer."""
    error = errors.QueueFull("full", retry_after_s=0.25)
    retry = RetryInfo()
    assert details_of(error).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert dict(explain(error))["grpc-retry-pushback-ms"] == "250"


def test_unknown_errors_are_hidden_and_logged(caplog):
    """A caller sees an id, not the message or stack of a fault of ours; the log has both under that id."""
    answer = errors.public(ValueError("secret"))
    assert answer.code == grpc.StatusCode.INTERNAL
    assert "secret" not in answer.message
    assert caplog.records[0].fault_id in answer.message
    assert caplog.records[0].exc_info[1].args == ("secret",)


@pytest.mark.parametrize("error", [errors.NotFound("x"), errors.Draining("x"), errors.DeadlineExpired("x")])
def test_errors_meant_for_callers_pass(error):
    """An error of the tree goes out as it is."""
    assert errors.public(error) is error
