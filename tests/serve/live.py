"""A live server in this process: the real application on a real socket, over the small engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx
import openai
import uvicorn
from starlette.types import ASGIApp

from openautoglm.serve.access import Access, AccessOptions
from openautoglm.serve.app import create_app
from openautoglm.serve.audit import AuditLog
from openautoglm.serve.context import ServeContext
from openautoglm.serve.limits import Limits
from openautoglm.serve.listener import open_listener
from openautoglm.serve.metrics import Metrics
from openautoglm.serve.privacy import Privacy, PrivacyOptions
from openautoglm.serve.settings import EdgeSettings
from openautoglm.serve.trace_options import TraceOptions
from openautoglm.serve.tracing import Tracing
from openautoglm.serve.web import Tls, uvicorn_config
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.small_engine import SmallEngine
from tests.text.fixtures import byte_level, write_tokenizer

T = TypeVar("T")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'forbidden' %}{{ raise_exception('no such role here') }}{% endif -%}"
    "<|{{ message.role if message.role in ['system', 'assistant'] else 'user' }}|>{{ message.content }}"
    "{%- if message.tool_calls %}{{ message.tool_calls[0].function.arguments | tojson }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if loud is defined and loud %}!{% endif -%}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
)
DEFAULTS = SamplingParams(temperature=0.75, top_p=0.9)


@dataclass
class Live:
    """A running server: its address, and the parts that tests reach into."""

    url: str
    port: int
    engine: SmallEngine
    context: ServeContext
    tokenizer: Tokenizer
    app: ASGIApp
    loop: asyncio.AbstractEventLoop
    # One client for all requests: making one costs more than a request.
    http: httpx.Client
    clients: ExitStack

    def in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the server's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return self.http.post(path, json=body, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx.Response:
        return self.http.get(path, **options)  # type: ignore[arg-type]

    def client(self, key: str = "EMPTY") -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)
        return self.clients.enter_context(client)

    def anthropic_client(self, key: str = "EMPTY") -> anthropic.Anthropic:
        client = anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=30)
        return self.clients.enter_context(client)

    def chat(self, text: str = "hello", **fields: object) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def still_answers(self) -> None:
        """Fail unless an ordinary request gets its ordinary answer."""
        answer = self.chat("are you there?")
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "0:are you there?"

    def wait_until_idle(self, seconds: float = 5.0) -> float:
        """Wait until the engine runs nothing; return how long that took."""
        begin = time.monotonic()
        while self.engine.running or self.context.drain.num_active:
            assert time.monotonic() - begin < seconds, "requests are still running"
            time.sleep(0.005)
        return time.monotonic() - begin


def make_tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(write_tokenizer(directory, byte_level()))


@contextlib.contextmanager
def live_server(
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | None = None,
    context_tokens: int = 512,
    access: AccessOptions | None = None,
    privacy: PrivacyOptions | None = None,
    audit: AuditLog | None = None,
    tls: Tls | None = None,
    traces: TraceOptions | None = None,
    **settings: object,
) -> Iterator[Live]:
    """Run a server until the block ends."""
    engine = SmallEngine(tokenizer, context_tokens=context_tokens)
    template = template or ChatTemplate({"default": TEMPLATE})
    context = ServeContext(
        client=engine,
        description=asyncio.run(engine.describe()),
        tokenizer=tokenizer,
        template=template,
        default_sampling=DEFAULTS,
        settings=EdgeSettings(model_names=("small", "org/alias"), **settings),  # type: ignore[arg-type]
        metrics=Metrics("small"),
        limits=Limits(kv_block_bytes=asyncio.run(engine.memory()).block_bytes),
        access=Access(access),
        privacy=Privacy(privacy),
        audit=audit,
        tracing=None if traces is None else Tracing(traces, "small", engine),
    )
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = create_app(context)
    config = uvicorn_config(app, context.settings, context.metrics.strangers, tls)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30) as client, ExitStack() as clients:
            live = Live(url, port, engine, context, tokenizer, app, loops[0], client, clients)
            yield live
        if context.tracing is not None:
            live.in_loop(context.tracing.close())
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        listener.close()
        template.close()
        context.close()
        assert not thread.is_alive()


def events_of(text: str) -> list[str]:
    """Return the data of a stream's events, comments left out."""
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
