"""How errors of the SDK become statuses of HTTP."""

import json

import grpc
import pytest

from digits_client import CallError, _errors
from digits_web.problems import handlers

EXPECTED = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_code_is_answered(code):
    """Each code of gRPC becomes a status with the server's words; what is the gateway's own affair is 502."""
    error = _errors._BY_CODE.get(code, CallError)(code, "the words")
    for kind in type(error).__mro__:
        if handler := handlers("far:50051", {}).get(kind):
            break
    answer = handler(None, error)
    assert answer.status_code == EXPECTED.get(code.name, 502)
    detail = json.loads(answer.body)["detail"]
    assert "the words" in detail
    assert ("far:50051" in detail) == (answer.status_code >= 500)
