"""Errors as HTTP tells them: a status and a sentence, in the form of RFC 9457 (application/problem+json)."""

from __future__ import annotations

import http
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from digits_client import (
    CallError,
    DeadlineExceeded,
    DigitsError,
    InvalidImage,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerUnavailable,
)

STATUS: dict[type, int] = {
    # What the caller did wrong.
    InvalidImage: 400,
    InvalidRequest: 400,
    NotFound: 404,
    # What lies between the gateway and the server, a refused token included: it is the gateway's token.
    Overloaded: 503,
    ServerUnavailable: 503,
    DeadlineExceeded: 504,
    CallError: 502,
    DigitsError: 500,
}


class Problem(HTTPException):
    """A request that can't be answered; `detail` names the field, the value and what is allowed."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer that tells of a problem."""
    body = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def handlers(server: str, headers: Mapping[str, str]) -> dict[Any, Callable[[Request, Any], Response]]:
    """Return what answers for each kind of exception.

    Args:
        server: Is named where it is the one to blame.
        headers: Of the answer to a fault of ours, which no middleware passes any more.
    """

    def http_error(request: Request, error: HTTPException) -> Response:
        detail = error.detail
        if not isinstance(error, Problem):  # Starlette's own, which only repeat the title
            detail = f"{request.method} {request.url.path}: {detail.lower()}; /api/openapi.json tells what there is"
        return problem(error.status_code, detail, error.headers)

    def digits_error(_: Request, error: DigitsError) -> Response:
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        detail = error.details if isinstance(error, CallError) else str(error)
        if isinstance(error, ServerUnavailable):
            detail = f"No server can be reached at {server}: {detail}"
        elif isinstance(error, CallError) and status >= 500:
            detail = f"The server at {server} could not answer: {detail}"
        return problem(status, detail, {"retry-after": "1"} if status == 503 else None)

    def fault(_: Request, __: Exception) -> Response:
        return problem(500, "The gateway failed; its log tells more.", headers)

    return {HTTPException: http_error, DigitsError: digits_error, Exception: fault}
