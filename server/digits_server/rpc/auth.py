"""Bearer tokens: what a token file says, and whether a call passes. Plain functions: any transport can ask them."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from digits_server.errors import PermissionDenied, Unauthenticated

CLASSIFY, ADMIN = SCOPES = ("classify", "admin")
OPEN = frozenset({"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"})
"""Methods for everybody: probes, as `grpc.health.v1` is, which never comes here."""
NEEDS_CLASSIFY = frozenset(
    {
        *(f"/digits.v1.DigitClassifier/{method}" for method in ("Classify", "ClassifyStream", "ListModels")),
        *(
            f"/inference.GRPCInferenceService/{method}"
            for method in (
                *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
                *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
            )
        ),
    }
)
"""What else there is or will be needs `admin`."""

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Token:
    """An entry of the token file."""

    name: str
    digest: bytes
    """SHA-256 of the token; the file doesn't hold the token itself."""
    scopes: frozenset[str]
    expires: float
    """Seconds since 1970; infinity: never."""


def parse(file: bytes) -> list[Token]:
    """Return the entries of a token file.

    Raises:
        ValueError: It isn't TOML (`tomllib.TOMLDecodeError` is one), names no token, or an entry is wrong.
    """
    tokens = [_token(name, entry) for name, entry in tomllib.loads(file.decode()).items()]
    if not tokens:
        raise ValueError("names no token")
    return tokens


def _token(name: str, entry: object) -> Token:
    entry = dict(entry) if isinstance(entry, dict) else {}
    digest, scopes, expires = (entry.pop(key, None) for key in ("sha256", "scopes", "expires"))
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ValueError(f"[{name}] sha256: not 64 hexadecimal digits; allowed is what sha256sum prints of the token")
    if not (isinstance(scopes, list) and scopes and all(scope in SCOPES for scope in scopes)):
        raise ValueError(f"[{name}] scopes: {scopes}; allowed is a list of {', '.join(SCOPES)}")
    if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo):
        raise ValueError(f"[{name}] expires: {expires}; allowed is a time with its zone, as in 2030-01-31T00:00:00Z")
    if entry:
        raise ValueError(f"[{name}] {min(entry)}: no such key; allowed are sha256, scopes, expires")
    return Token(name, bytes.fromhex(digest), frozenset(scopes), expires.timestamp() if expires else float("inf"))


def scope(method: str) -> str | None:
    """Return the scope that a call of a method (`/package.Service/Method`) needs; None: it needs no token."""
    if method in OPEN:
        return None
    return CLASSIFY if method in NEEDS_CLASSIFY else ADMIN


def check(metadata: Metadata, tokens: Iterable[Token], scope: str) -> None:
    """Let a call pass that shows a token with the scope.

    Raises:
        Unauthenticated: There is no such token, or it has expired. The caller isn't told which.
        PermissionDenied: The token is good, but for other things.
    """
    shown = [value for key, value in metadata if key == "authorization"]
    if not shown:
        raise Unauthenticated("token_missing")
    kind, _, text = str(shown[0]).partition(" ")
    digest = hashlib.sha256(text.encode(errors="replace")).digest()
    # All are compared, each in constant time: how long it takes tells nothing about any.
    matching = [token for token in tokens if hmac.compare_digest(token.digest, digest)]
    if len(shown) > 1 or kind.lower() != "bearer" or not matching:
        raise Unauthenticated("token_wrong")
    if matching[0].expires <= time.time():
        raise Unauthenticated("token_expired")
    if scope not in matching[0].scopes:
        raise PermissionDenied(f"the token's scopes do not include {scope}")
