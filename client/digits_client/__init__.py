"""Recognise handwritten digits with a Digits server.

>>> from digits_client import DigitClient
>>> with DigitClient("127.0.0.1:50051") as client:       # doctest: +SKIP
...     client.classify("seven.png").digit
7
"""

from digits_client._client import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, DigitClient
from digits_client._errors import (
    CallError,
    Cancelled,
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
from digits_client._images import ImageLike
from digits_client._messages import Model, Prediction, Predictions, Quality, Timing

__all__ = [
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT_S",
    "CallError",
    "Cancelled",
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
    "ServerFault",
    "ServerUnavailable",
    "Timing",
    "Unsupported",
]
