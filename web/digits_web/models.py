"""The server's models: a client for each that somebody asks."""

from __future__ import annotations

from collections.abc import Callable

from digits_client import AsyncDigitClient
from digits_web.problems import Problem


class Models:
    """Clients by the name of their model, made when first needed.

    Args:
        connect: Returns a client for the model of that name; the server's default for "".
    """

    def __init__(self, connect: Callable[[str], AsyncDigitClient]) -> None:
        self._connect = connect
        self.default = connect("")
        self._clients = {"": self.default}

    async def client(self, name: str) -> AsyncDigitClient:
        """Return the client for a model.

        Raises:
            Problem: 404; the server has no model of that name.
        """
        if name not in self._clients:
            names = {model.name for model in await self.default.models()}
            if name not in names:  # no connections for whatever somebody writes
                raise Problem(404, f"model: {name[:100]!r}; allowed are {', '.join(sorted(names))}")
            self._clients.setdefault(name, self._connect(name))  # unless somebody else's came in meanwhile
        return self._clients[name]

    async def aclose(self) -> None:
        """End the connections."""
        for client in self._clients.values():
            await client.close()
