"""`Doorman`: answers for a server that still loads, so that its port does not refuse but says to come again."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType

import uvicorn
from starlette.types import Receive, Scope, Send

from openautoglm.serve.replies import SERVER_ERROR, ErrorReply, json_response
from openautoglm.serve.settings import EdgeSettings
from openautoglm.serve.strangers import Strangers
from openautoglm.serve.web import Tls, uvicorn_config

_RETRY_SECONDS = 5
_CLOSE = {"Connection": "close"}
# Nothing that it answers takes longer; whoever has connected and says nothing must not keep the server waiting.
_SETTINGS = EdgeSettings(model_names=(), header_seconds=5.0, body_seconds=5.0, idle_seconds=5.0)
_PATIENCE_SECONDS = 0.5
_POLL_SECONDS = 0.01


class Doorman:
    """Answers 503 on a listening socket, in a thread of its own, until it is closed; the socket stays open."""

    def __init__(self, listener: socket.socket, tls: Tls | None = None) -> None:
        # A descriptor of its own: its end closes only that.
        self._socket = listener.dup()
        self._server = uvicorn.Server(uvicorn_config(_answer, _SETTINGS, Strangers(), tls))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="doorman")

    def close(self) -> None:
        """Let what is being answered finish, and end; safe to call twice."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Doorman:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not (self._closing.is_set() and self._server.started) and not serving.done():
            await asyncio.sleep(_POLL_SECONDS)
        if not serving.done():
            await self._let_go()
        self._server.should_exit = True
        await serving

    async def _let_go(self) -> None:
        """Accept nothing more, and wait a moment for those who are in: uvicorn would hang up on them at once."""
        for server in self._server.servers:
            server.close()
        waited = 0.0
        while self._server.server_state.connections and waited < _PATIENCE_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/health":
        state = {"status": "loading", "live": True, "ready": False, "draining": False}
        response = json_response(state, status=503, headers=dict(_CLOSE))
    else:
        response = ErrorReply(
            status=503,
            message="the model is being loaded: try again in a moment",
            type=SERVER_ERROR,
            code="loading",
            headers=(("Retry-After", str(_RETRY_SECONDS)), *_CLOSE.items()),
        ).response(scope["path"], "")
    await response(scope, receive, send)
