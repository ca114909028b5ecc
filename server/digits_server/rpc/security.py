"""Who may connect and call, as the files for it say now: certificate and tokens are exchanged without a restart."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from digits_server.config import Config, SettingRefused
from digits_server.metrics.recorder import Metrics
from digits_server.rpc import auth as tokens
from digits_server.rpc import tls as certificates
from digits_server.rpc.auth import Metadata, Token
from digits_server.rpc.tls import Certificate

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often files are looked at."""

T = TypeVar("T")


class Watched(Generic[T]):
    """What some files mean. When their contents change they are read again; what makes no sense changes nothing.

    Contents are compared, not times: secrets in a cluster are links to folders that are swapped, and a file system may
    tell time in seconds. The files are small.

    Args:
        flag: The setting that names them.
        paths: The files.
        read: Returns what the contents mean. Raises ValueError or OSError where they mean nothing.
        told: Called with "taken" or "refused", at the start and after each change.

    Raises:
        SettingRefused: They make no sense at the start.
    """

    def __init__(self, flag: str, paths: Sequence[Path], read: Callable[..., T], told: Callable[[str], None]) -> None:
        self._flag, self._paths, self._read, self._told = flag, paths, read, told
        self._contents = self._get()
        try:
            self._take()
        except (OSError, ValueError) as error:
            raise SettingRefused(flag, str(error)) from error

    def _get(self) -> list[bytes] | str:
        try:
            return [path.read_bytes() for path in self._paths]
        except OSError as error:
            return str(error)

    def _take(self) -> None:
        if isinstance(self._contents, str):
            raise OSError(self._contents)
        self.value = self._read(*self._contents)
        self._told("taken")

    def look(self) -> None:
        """Take the new meaning, if there is one."""
        contents = self._get()
        if contents == self._contents:
            return
        self._contents = contents
        try:
            self._take()
        except (OSError, ValueError) as error:
            reason = {"setting": self._flag, "reason": str(error)}
            log.error("changed files refused; the old ones stay in force", extra=reason)  # noqa: TRY400 - no fault of ours
            self._told("refused")
        else:
            log.info("changed files taken", extra={"setting": self._flag})


class Access:
    """Certificate and tokens of one server. Made on the event loop that will `watch`.

    Args:
        config: Names the files.
        metrics: Where changes, handshakes and the certificate's last day are shown.

    Raises:
        SettingRefused: A file is no good, one is missing, or anybody on the network could read the tokens.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._asks_who_calls = config.tls_client_ca is not None
        self._changed: Callable[[Certificate], None] = lambda _certificate: None
        self._certificate = self._watch_certificate(config)
        self._tokens = self._watch_tokens(config)

    def _watch_certificate(self, config: Config) -> Watched[Certificate] | None:
        files = {"--tls-cert": config.tls_cert, "--tls-key": config.tls_key, "--tls-client-ca": config.tls_client_ca}
        given = {flag: path for flag, path in files.items() if path}
        if not given:
            return None
        if not {"--tls-cert", "--tls-key"} <= given.keys():
            flag, path = given.popitem()
            raise SettingRefused(flag, f"{path} is of use only with both --tls-cert and --tls-key")
        paths = list(given.values())

        def read(*contents: bytes) -> Certificate:
            certificate = certificates.read(paths, contents)
            self._metrics.certificate(certificate.expires)
            self._changed(certificate)
            return certificate

        return Watched("--tls-cert", paths, read, functools.partial(self._metrics.secret, "certificate"))

    def _watch_tokens(self, config: Config) -> Watched[list[Token]] | None:
        if config.token_file is None:
            return None
        if not (config.tls_cert or config.allow_plain_tokens or config.is_local):
            raise SettingRefused(
                "--token-file",
                f"tokens would travel in plain text to {config.host}; give --tls-cert and --tls-key, or "
                "--allow-plain-tokens where something else encrypts",
            )
        told = functools.partial(self._metrics.secret, "tokens")
        return Watched("--token-file", [config.token_file], tokens.parse, told)

    def on_certificate(self, changed: Callable[[Certificate], None]) -> None:
        """Have a front that serves TLS itself told of the certificate in force, and of each that takes its place."""
        self._changed = changed
        if self._certificate:
            changed(self._certificate.value)

    def credentials(self) -> grpc.ServerCredentials | None:
        """Return what serves the certificate in force at each handshake; None: plain text."""
        certificate = self._certificate
        if certificate is None:
            return None
        served = certificate.value

        def changed() -> Any:  # a configuration, or None where the stub is wrong not to expect it
            """Be asked at each handshake, on a thread of gRPC's."""
            nonlocal served
            self._loop.call_soon_threadsafe(self._metrics.handshake)
            if certificate.value is served:
                return None
            served = certificate.value
            return served.configuration

        return grpc.dynamic_ssl_server_credentials(served.configuration, changed, self._asks_who_calls)

    def guard(self, method: str) -> Callable[[Metadata], None] | None:
        """Return what refuses calls of a method (`/package.Service/Method`) by their metadata; None: all may call."""
        watched, scope = self._tokens, tokens.scope(method)
        if watched is None or scope is None:
            return None
        return lambda metadata: tokens.check(metadata, watched.value, scope)

    def look(self) -> None:
        """Take what has changed in the files."""
        for watched in (self._certificate, self._tokens):
            if watched:
                watched.look()

    async def watch(self) -> None:
        """Look after the files, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
