"""The Unix socket: a real server and real clients, and peers that misbehave."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openautoglm.engine import server as server_module
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.remote import SocketEngineClient
from openautoglm.engine.server import EngineServer
from openautoglm.engine.wire import (
    CLIENT_DECODER,
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    SERVER_DECODER,
    AskStatus,
    Fatal,
    Generate,
    Hello,
    ServerFrame,
    Welcome,
    decode_payload,
    encode_frame,
    error_from_wire,
    error_to_wire,
    read_frame,
)
from openautoglm.errors import (
    ContextOverflowError,
    DoesNotFitError,
    EngineError,
    InvalidRequestError,
    OpenAutoGLMError,
    OverloadedError,
    UnsupportedModelError,
)
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import HistoryExecutor, isolated, make_engine
from tests.engine.test_local import DESCRIPTION, collect, drain, make, slow_executor, until_idle


@dataclass
class Served:
    path: Path
    server: EngineServer
    executor: HistoryExecutor

    def client(self) -> SocketEngineClient:
        return SocketEngineClient(self.path)


@asynccontextmanager
async def serve(directory: Path, executor: HistoryExecutor | None = None, **settings: Any) -> AsyncIterator[Served]:
    executor = executor or HistoryExecutor(64)
    heartbeat = Heartbeat(directory / "heartbeat", create=True)
    path = directory / "engine.sock"
    server = EngineServer(make_engine(executor, **settings), DESCRIPTION, path, heartbeat)
    await server.start()
    try:
        yield Served(path, server, executor)
    finally:
        await server.close()
        heartbeat.close()
    assert not path.exists()


def run(directory: Path, body: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with serve(directory, **settings) as served, asyncio.timeout(60):
            await body(served)

    asyncio.run(main())


def test_two_clients_with_the_same_ids_get_their_own_answers(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        clients = [served.client(), served.client()]
        requests = [make(f"{chr(97 + i)}x", n=1 + i % 3, temperature=1.0, logprobs=1) for i in range(8)]
        other = [msgspec.structs.replace(r, prompt_tokens=(9, *r.prompt_tokens)) for r in requests]
        streams = [collect(clients[0].generate(r)) for r in requests] + [collect(clients[1].generate(r)) for r in other]
        collectors = await asyncio.gather(*streams)
        for request, collector in zip([*requests, *other], collectors, strict=True):
            for choice in range(request.sampling.n):
                expected = isolated(request, choice, context_tokens=512)
                assert collector.outcomes[request.request_id, choice] == expected
        assert await clients[0].describe() == DESCRIPTION
        for client in clients:
            await client.close()
        with pytest.raises(EngineError, match="this client is closed"):
            await clients[0].status()

    run(tmp_path, body)


def test_the_socket_is_private(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o600

    run(tmp_path, body)


def test_refusals_keep_their_type_and_details(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        client = served.client()
        with pytest.raises(ContextOverflowError, match="the prompt has 600 tokens") as overflow:
            await collect(client.generate(make("a", length=600)))
        assert (overflow.value.param, overflow.value.code) == ("prompt", "context_length_exceeded")
        running = client.generate(make("s0", max_tokens=300))
        await anext(running)
        waiting = asyncio.create_task(drain(client.generate(make("s1"))))
        while (await client.status()).num_waiting == 0:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError) as overloaded:
            await collect(client.generate(make("b")))
        assert overloaded.value.retry_after_seconds >= 1.0
        with pytest.raises(InvalidRequestError, match="'s0' is in use"):
            await collect(client.generate(make("s0")))
        huge = msgspec.structs.replace(make("c"), prompt_tokens=(1 << 70,))
        with pytest.raises(InvalidRequestError, match="cannot be written"):
            await collect(client.generate(huge))
        long = msgspec.structs.replace(make("d"), prompt_tokens=(70_000,) * (MAX_FRAME_BYTES // 4))
        with pytest.raises(InvalidRequestError, match="send a shorter request"):
            await collect(client.generate(long))
        assert (await client.status()).num_waiting == 1, "nobody else suffered"
        assert len(await drain(running)) == 299
        assert len(await waiting) == 8
        await client.close()

    run(tmp_path, body, max_running=1, max_queued=1, executor=slow_executor())


def test_a_server_refuses_a_repeated_id_without_ending_the_connection(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        reader, writer = await connect(served.path)
        for call in (1, 2):
            writer.write(encode_frame(Generate(call=call, request=make("a", max_tokens=100))))
        kinds = [type(await frame_of(reader)).__name__ for _ in range(3)]
        assert "Refused" in kinds
        writer.close()

    run(tmp_path, body, executor=slow_executor())


def test_abort_and_early_closing(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        client, other = served.client(), served.client()
        stream = client.generate(make("a", max_tokens=400))
        await anext(stream)
        await other.abort("a")
        await anext(stream)
        await client.abort("unknown")
        await client.abort("a")
        assert (await drain(stream))[-1].finish_reason == "abort"
        async with aclosing(client.generate(make("b", max_tokens=400))) as early:
            await anext(early)
        assert (await until_idle(client)).generated_tokens < 600
        await client.close()
        await other.close()

    run(tmp_path, body, executor=slow_executor())


def test_a_client_that_goes_frees_its_blocks(tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        client, leaver = served.client(), served.client()
        stream = leaver.generate(make("a", max_tokens=400, n=2))
        await anext(stream)
        assert (await client.status()).num_running >= 1
        await leaver.close()
        with pytest.raises(EngineError):
            await drain(stream)
        status = await until_idle(client)
        assert status.num_free_blocks + status.num_cached_blocks == status.num_blocks
        assert status.heartbeat > 0
        await client.close()

    run(tmp_path, body, executor=slow_executor())


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(encode_frame(Hello(version=PROTOCOL_VERSION)))
    assert isinstance(await frame_of(reader), Welcome)
    return reader, writer


async def frame_of(reader: asyncio.StreamReader) -> ServerFrame | None:
    return await read_frame(reader, SERVER_DECODER)


HELLO = encode_frame(Hello(version=PROTOCOL_VERSION))
HOSTILE = {
    "oversized frame": HELLO + (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "largest length": HELLO + b"\xff\xff\xff\xff",
    "empty frame": HELLO + bytes(4),
    "garbage bytes": HELLO + (5).to_bytes(4, "big") + b"\xc1garb",
    "garbage instead of hello": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no hello": encode_frame(AskStatus(call=1)),
    "wrong version": encode_frame(Hello(version=PROTOCOL_VERSION + 1)),
    "two hellos": HELLO + HELLO,
    "unknown frame": HELLO + b"\x00\x00\x00\x0b" + b"\x81\xa4type\xa4Evil",
    "a frame of the other side": HELLO + encode_frame(Welcome(description=DESCRIPTION)),
    "unknown field": HELLO + (lambda p: len(p).to_bytes(4, "big") + p)(
        msgspec.msgpack.encode({"type": "AskStatus", "call": 1, "evil": 2})
    ),
    "wrong type": HELLO + (lambda p: len(p).to_bytes(4, "big") + p)(
        msgspec.msgpack.encode({"type": "AskStatus", "call": "one"})
    ),
    "deep nesting": HELLO + (lambda p: len(p).to_bytes(4, "big") + p)(b"\x91" * 100_000 + b"\x90"),
    "sampling out of range": HELLO + (lambda p: len(p).to_bytes(4, "big") + p)(
        msgspec.msgpack.encode(
            {
                "type": "Generate",
                "call": 1,
                "request": {"request_id": "a", "prompt_tokens": [1], "sampling": {"temperature": -1.0}},
            }
        )
    ),
    "truncated in the length": HELLO + b"\x00\x00",
    "truncated in the payload": HELLO + encode_frame(AskStatus(call=1))[:-3],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_peer_is_cut_off_and_nobody_else_suffers(name: str, tmp_path: Path) -> None:
    async def body(served: Served) -> None:
        client = served.client()
        stream = client.generate(make("a", max_tokens=200))
        await anext(stream)
        reader, writer = await asyncio.open_unix_connection(str(served.path))
        writer.write(HOSTILE[name])
        if name.startswith("truncated"):
            writer.write_eof()
        frames = []
        while (frame := await asyncio.wait_for(frame_of(reader), 5)) is not None:
            frames.append(frame)
        assert isinstance(frames[-1], Fatal), frames
        assert frames[-1].error.kind == "EngineError"
        writer.close()
        assert len(await drain(stream)) == 199
        await client.close()

    run(tmp_path, body)


def test_a_peer_that_says_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HELLO_SECONDS", 0.05)

    async def body(served: Served) -> None:
        reader, writer = await asyncio.open_unix_connection(str(served.path))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    run(tmp_path, body)


def test_a_peer_that_never_reads_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_UNREAD_BYTES", 4096)

    async def body(served: Served) -> None:
        client = served.client()
        _, writer = await connect(served.path)
        for index in range(10):
            writer.write(encode_frame(Generate(call=index, request=make(f"r{index}", max_tokens=5000, logprobs=20))))
        for _ in range(1000):
            status = await client.status()
            if status.prompt_tokens and status.num_running == status.num_waiting == 0:
                break
            await asyncio.sleep(0.01)
        assert status.generated_tokens < 50_000
        assert status.num_free_blocks + status.num_cached_blocks == status.num_blocks
        writer.close()
        await client.close()

    run(tmp_path, body, executor=HistoryExecutor(4096), context_tokens=6000)


def test_when_the_engine_dies_nobody_hangs(tmp_path: Path) -> None:
    def fail(batch: StepBatch) -> None:
        if int(batch.positions.max()) > 20:
            raise EngineError("the device is gone")

    async def body(served: Served) -> None:
        client = served.client()
        results = await asyncio.gather(
            *(collect(client.generate(make(name, max_tokens=100))) for name in ("a", "b")), return_exceptions=True
        )
        assert [str(result) for result in results] == ["the engine ended: the engine failed: the device is gone"] * 2
        assert str(await served.server.failed) == "the engine failed: the device is gone"
        with pytest.raises(EngineError):
            await client.status()
        await client.close()

    run(tmp_path, body, executor=HistoryExecutor(64, fail=fail))


def test_a_client_without_a_server_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        client = SocketEngineClient(tmp_path / "none.sock")
        with pytest.raises(EngineError, match=r"does not answer at .*none\.sock"):
            await client.describe()

    asyncio.run(main())


def test_a_client_finds_the_next_server_at_the_same_path(tmp_path: Path) -> None:
    async def main() -> None:
        client = SocketEngineClient(tmp_path / "engine.sock")
        async with serve(tmp_path, slow_executor()):
            stream = client.generate(make("a", max_tokens=400))
            await anext(stream)
        with pytest.raises(EngineError):
            await drain(stream)
        with pytest.raises(EngineError, match="does not answer"):
            await client.status()
        (tmp_path / "heartbeat").unlink()
        async with serve(tmp_path):
            assert (await collect(client.generate(make("b")))).finished("b", 1)
        await client.close()

    asyncio.run(main())


def test_a_client_told_to_go_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_frame(reader, CLIENT_DECODER)
            writer.write(encode_frame(Fatal(error=error_to_wire(EngineError("version 9 is spoken here")))))
            writer.close()

        async with await asyncio.start_unix_server(answer, str(tmp_path / "s")):
            with pytest.raises(EngineError, match="version 9 is spoken here"):
                await SocketEngineClient(tmp_path / "s").describe()

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("bad", param="top_p"),
        ContextOverflowError("long", param="prompt"),
        OverloadedError("full", retry_after_seconds=2.5),
        UnsupportedModelError("no", features=("vision tower", "mla")),
        DoesNotFitError("too big", suggestions=("a", "b")),
        EngineError("gone"),
    ],
)
def test_errors_cross_whole(error: OpenAutoGLMError) -> None:
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(error_to_wire(error)), type=type(error_to_wire(error)))
    back = error_from_wire(wire)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_foreign_errors_and_names_become_engine_errors() -> None:
    assert error_to_wire(ZeroDivisionError("x")).message == "ZeroDivisionError: x"
    for kind in ("SystemExit", "annotations", "NoSuchError", "Exception"):
        wire = msgspec.structs.replace(error_to_wire(EngineError("m")), kind=kind)
        assert type(error_from_wire(wire)) is EngineError


def test_requests_cross_unchanged() -> None:
    sampling = SamplingParams(
        max_tokens=5, logit_bias=((3, 1.5), (4, -2)), seed=(1 << 64) - 1, stop=("a", "é"), stop_token_ids=(1,), n=3
    )
    request = msgspec.structs.replace(make("a"), sampling=sampling, namespace="t", priority=-4)
    frame = decode_payload(encode_frame(Generate(call=7, request=request))[4:], CLIENT_DECODER)
    assert frame == Generate(call=7, request=request)
