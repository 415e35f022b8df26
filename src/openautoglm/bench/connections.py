"""`Connections`: HTTP clients that are lent to one request at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import TracebackType

import httpx

from openautoglm.bench.endpoint import Endpoint
from openautoglm.bench.patience import Patience


class Connections:
    """As many connections as there are requests at once, each kept for the next request when its own has ended.

    A client with a connection each, as one client that has them all looks through them for every request and every end
    of one: with thousands in flight that took 14 ms of processor a request, and the load test measured itself.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self._headers = endpoint.headers()
        self._timeout = httpx.Timeout(None, connect=patience.connect_seconds)
        # Reading the certificates takes longer than all the rest of a client.
        self._certificates = httpx.create_ssl_context()
        self._all: list[httpx.AsyncClient] = []
        self._free: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Connections:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        for client in self._all:
            await client.aclose()

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend the client that was used last, as its connection is the least likely to be closed; else a new one."""
        if not self._free:
            client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout, verify=self._certificates)
            self._all.append(client)
            self._free.append(client)
        client = self._free.pop()
        try:
            yield client
        finally:
            self._free.append(client)
