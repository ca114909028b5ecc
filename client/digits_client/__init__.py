"""Recognise handwritten digits with a Digits server.

>>> from digits_client import DigitClient
>>> with DigitClient("127.0.0.1:50051") as client:       # doctest: +SKIP
...     client.classify("seven.png").digit
7
"""

from digits_client._async_client import AsyncDigitClient
from digits_client._client import DigitClient
from digits_client._errors import (
    CallError,
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    DigitsError,
    InvalidImage,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerFault,
    ServerUnavailable,
    Unsupported,
)
from digits_client._images import SIDE, ImageLike, Rows, prepare
from digits_client._messages import Model, Prediction, Predictions, Quality, Timing
from digits_client._settings import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Tls

__all__ = [
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT_S",
    "SIDE",
    "AsyncDigitClient",
    "CallError",
    "Cancelled",
    "ClientClosed",
    "DeadlineExceeded",
    "DigitClient",
    "DigitsError",
    "ImageLike",
    "InvalidImage",
    "InvalidRequest",
    "Model",
    "NotAuthenticated",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "Predictions",
    "Quality",
    "Rows",
    "ServerFault",
    "ServerUnavailable",
    "Timing",
    "Tls",
    "Unsupported",
    "prepare",
]
