"""What a server asks itself before it takes requests, so that the first ones are as fast as those after them.

Imports that wait for a first use, compiled validators, protocol classes, the template's worker, the tokenizer, threads
and the way to the engine and back are then as warm as after many requests. The requests go over a connection of this
process to itself that nobody else can use; metrics of requests, limits and the audit log see none of them, only the
engine's own counters of tokens and steps do. Prefixes that they leave belong to a tenant that nobody is.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import msgspec
import uvicorn

from openautoglm.log import get_logger
from openautoglm.serve.access import Access, AccessOptions
from openautoglm.serve.app import create_app
from openautoglm.serve.context import ServeContext
from openautoglm.serve.drain import Drain
from openautoglm.serve.limits import Limits
from openautoglm.serve.listener import open_listener
from openautoglm.serve.metrics import Metrics
from openautoglm.serve.strangers import Strangers
from openautoglm.serve.web import uvicorn_config

_ROUNDS = 4
_NUM_TOKENS = 4
_MOST_SECONDS = 5.0
_logger = get_logger(__name__)


async def warm_up(context: ServeContext) -> None:
    """Run chats and completions, whole and streamed; what fails is told in the log and stops nothing."""
    key = secrets.token_urlsafe(32)
    private = replace(
        context,
        metrics=Metrics(context.settings.model_names[0]),
        limits=Limits(kv_block_bytes=1),
        access=Access(AccessOptions(api_key=key)),
        audit=None,
        tracing=None,
        drain=Drain(),
    )
    with open_listener("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn_config(create_app(private), private.settings, Strangers()))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                while not server.started and not serving.done():
                    await asyncio.sleep(0.001)
                await _ask(listener.getsockname()[1], key, chats=context.template.exists)
        except (OSError, TimeoutError) as error:
            _logger.warning("the server's rehearsal ended early: %s", error or "no time left")
        finally:
            server.should_exit = True
            await serving


async def _ask(port: int, key: str, *, chats: bool) -> None:
    common = {"max_tokens": _NUM_TOKENS, "temperature": 0.5}
    bodies: list[tuple[str, dict[str, object]]] = [("/v1/completions", {**common, "prompt": "Hello"})]
    if chats:
        bodies.append(("/v1/chat/completions", {**common, "messages": [{"role": "user", "content": "Hello"}]}))
    for _ in range(_ROUNDS):
        for path, body in bodies:
            for stream in (False, True):
                status = await _post(port, key, path, msgspec.json.encode({**body, "stream": stream}))
                if status != b"200":
                    _logger.warning("a rehearsal of %s was answered with %s", path, status.decode("ascii", "replace"))


async def _post(port: int, key: str, path: str, body: bytes) -> bytes:
    """Return the status of an answer, after all of it has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode("ascii") + body)
        answer = await reader.read(-1)
    finally:
        writer.close()
    return answer[9:12]
