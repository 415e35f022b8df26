"""uvicorn as it is set up here: its settings, TLS, its logs, and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from openautoglm.errors import ConfigError
from openautoglm.log import ROOT_LOGGER_NAME, get_logger
from openautoglm.serve.app import create_app
from openautoglm.serve.context import ServeContext
from openautoglm.serve.protocol import MAX_HEADER_BYTES, protocol_class
from openautoglm.serve.settings import EdgeSettings
from openautoglm.serve.strangers import Strangers

_CLOSE_SECONDS = 3

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a certificate chain and its key in PEM; the key may be in the chain's file."""

    certificate: Path
    key: Path | None = None

    def check(self) -> None:
        """Raise `ConfigError` for files that cannot be used; a key with a password cannot."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            files = " and ".join(str(file) for file in (self.certificate, self.key) if file is not None)
            raise ConfigError(f"TLS cannot use {files}: {error}: give a certificate and its key in PEM") from None


def uvicorn_config(
    app: ASGIApp, settings: EdgeSettings, strangers: Strangers, tls: Tls | None = None
) -> uvicorn.Config:
    """Return how every server here is run."""
    return uvicorn.Config(
        app,
        lifespan="off",
        http=protocol_class(settings, strangers),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=int(settings.idle_seconds),
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )


def join_logs() -> None:
    """Send the warnings of uvicorn and asyncio where ours go."""
    # asyncio warns of every client that leaves in mid-answer, which is no news.
    for name, level in (("uvicorn", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers[:] = logging.getLogger(ROOT_LOGGER_NAME).handlers
        logger.setLevel(level)
        logger.propagate = False


class Server(uvicorn.Server):
    """uvicorn, with our own end: on a signal the port stays open and refuses new work until what runs is done."""

    def __init__(self, context: ServeContext, drain_seconds: float, tls: Tls | None) -> None:
        super().__init__(uvicorn_config(create_app(context), context.settings, context.metrics.strangers, tls))
        self._context = context
        self._drain_seconds = drain_seconds
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains, another one ends at once."""
        self._loop.call_soon_threadsafe(self._stop, sig)

    def _stop(self, sig: int) -> None:
        if self._draining is None:
            name = signal.Signals(sig).name
            _logger.warning("%s: finishing %d requests", name, self._context.drain.num_active)
            self._draining = self._loop.create_task(self._drain())
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        if not await self._context.drain.finish(self._drain_seconds):
            _logger.warning("requests were ended at the deadline of %g s", self._drain_seconds)
        self.should_exit = True
