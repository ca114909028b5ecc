"""Recognise handwritten digits with a Digits server.

>>> from digits_client import DigitClient
>>> with DigitClient("127.0.0.1:50051") as client:       # doctest: +SKIP
...     client.classify("seven.png").digit
7
"""

from digits_client._arrays import SIDE, Rows
from digits_client._async_client import AsyncDigitClient
from digits_client._base import DEFAULT_SERVER, DEFAULT_TIMEOUT_S
from digits_client._channel import Tls
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
from digits_client._reading import Number, ReadDigit
from digits_client._requests import ImageLike, prepare
from digits_client._results import Model, Prediction, Predictions, Quality, Timing
from digits_client._transport import AsyncTransport, Transport

__all__ = [
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT_S",
    "SIDE",
    "AsyncDigitClient",
    "AsyncTransport",
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
    "Number",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "Predictions",
    "Quality",
    "ReadDigit",
    "Rows",
    "ServerFault",
    "ServerUnavailable",
    "Timing",
    "Tls",
    "Transport",
    "Unsupported",
    "prepare",
]
