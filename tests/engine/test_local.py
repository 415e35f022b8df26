"""`LocalEngineClient` and its thread: refusals, cancellation, several readers, and an engine that dies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from openautoglm.engine.client import EngineDescription, GenerationEvent, GenerationRequest
from openautoglm.engine.local import LocalEngineClient
from openautoglm.errors import ContextOverflowError, EngineError, InvalidRequestError
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import Collector, HistoryExecutor, isolated, make_engine

DESCRIPTION = EngineDescription(
    model="history",
    fingerprint="history",
    context_tokens=512,
    vocab_size=101,
    max_running_requests=8,
    max_queued_requests=8,
    plan_table="-",
)


def make(name: str, *, length: int = 5, **sampling: Any) -> GenerationRequest:
    values = {"seed": 1, "max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling}
    prompt = tuple((ord(name[0]) + i) % 100 for i in range(length))
    return GenerationRequest(request_id=name, prompt_tokens=prompt, sampling=SamplingParams(**values))


def make_client(executor: HistoryExecutor | None = None, **settings: Any) -> LocalEngineClient:
    return LocalEngineClient(make_engine(executor or HistoryExecutor(64), **settings), DESCRIPTION)


async def collect(stream: AsyncIterator[GenerationEvent]) -> Collector:
    collector = Collector()
    async for event in stream:
        collector.take([event])
    return collector


async def drain(stream: AsyncIterator[GenerationEvent]) -> list[GenerationEvent]:
    return [event async for event in stream]


def slow_executor() -> HistoryExecutor:
    """Steps take 2 ms, so that a request of some hundred tokens surely runs while a test acts."""
    return HistoryExecutor(64, fail=lambda _: time.sleep(0.002))


async def until_idle(client: Any) -> Any:
    """Wait until nothing runs or waits; return the status."""
    for _ in range(500):
        status = await client.status()
        if status.num_running == status.num_waiting == 0:
            return status
        await asyncio.sleep(0.01)
    raise AssertionError("the engine does not become idle")


def test_many_requests_at_once_equal_isolated_runs() -> None:
    async def main() -> None:
        client = make_client()
        requests = [make(f"{chr(97 + i)}{i}", n=1 + i % 2, temperature=1.0) for i in range(20)]
        collectors = await asyncio.gather(*(collect(client.generate(request)) for request in requests))
        for request, collector in zip(requests, collectors, strict=True):
            for choice in range(request.sampling.n):
                expected = isolated(request, choice, context_tokens=512)
                assert collector.outcomes[request.request_id, choice] == expected
        assert await client.describe() == DESCRIPTION
        await client.close()

    asyncio.run(main())


def test_several_event_loops() -> None:
    client = make_client()
    results: list[Collector] = []

    def run(index: int) -> None:
        results.append(asyncio.run(collect(client.generate(make(f"t{index}", max_tokens=50)))))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    asyncio.run(client.close())


def test_refusals_come_before_the_first_event() -> None:
    async def main() -> None:
        client = make_client()
        with pytest.raises(ContextOverflowError, match="the prompt has 600 tokens"):
            await collect(client.generate(make("a", length=600)))
        stream = client.generate(make("b", max_tokens=100))
        await anext(stream)
        with pytest.raises(InvalidRequestError, match="'b' is in use"):
            await collect(client.generate(make("b")))
        assert len(await drain(stream)) == 99, "the first one is not disturbed"
        await client.close()

    asyncio.run(main())


def test_closing_the_iterator_ends_the_request_and_frees_its_blocks() -> None:
    async def main() -> None:
        client = make_client(slow_executor())
        async with aclosing(client.generate(make("a", max_tokens=400))) as stream:
            await anext(stream)
        status = await until_idle(client)
        assert status.num_free_blocks + status.num_cached_blocks == status.num_blocks
        assert status.generated_tokens < 400
        await client.close()

    asyncio.run(main())


def test_cancelling_a_reader_ends_the_request() -> None:
    async def main() -> None:
        client = make_client(slow_executor())
        task = asyncio.create_task(collect(client.generate(make("a", max_tokens=400))))
        while (await client.status()).generated_tokens == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await until_idle(client)).generated_tokens < 400
        await client.close()

    asyncio.run(main())


def test_abort_is_an_outcome() -> None:
    async def main() -> None:
        client = make_client(slow_executor())
        stream = client.generate(make("a", max_tokens=400))
        await anext(stream)
        await client.abort("a")
        await client.abort("never seen")
        events = await drain(stream)
        assert events[-1].finish_reason == "abort"
        await client.close()

    asyncio.run(main())


def test_a_dying_engine_ends_every_reader_and_every_later_call() -> None:
    def fail(batch: StepBatch) -> None:
        if int(batch.positions.max()) > 20:
            raise EngineError("the device is gone")

    async def main() -> None:
        client = make_client(HistoryExecutor(64, fail=fail))
        readers = [collect(client.generate(make(name, max_tokens=100))) for name in ("a", "b")]
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert [str(result) for result in results] == ["the engine failed: the device is gone"] * 2
        for call in (client.describe(), client.status(), collect(client.generate(make("c")))):
            with pytest.raises(EngineError, match="the device is gone"):
                await call
        await client.close()

    asyncio.run(main())


def test_a_fault_that_is_nobodys_error_is_one_too() -> None:
    def fail(_: StepBatch) -> None:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        client = make_client(HistoryExecutor(64, fail=fail))
        with pytest.raises(EngineError, match="the engine failed: a bug"):
            await collect(client.generate(make("a")))
        await client.close()

    asyncio.run(main())


def test_closing_ends_what_runs() -> None:
    async def main() -> None:
        executor = slow_executor()
        client = make_client(executor)
        stream = client.generate(make("a", max_tokens=400))
        await anext(stream)
        await client.close()
        await client.close()
        with pytest.raises(EngineError, match="was closed"):
            await drain(stream)
        assert executor.closed

    asyncio.run(main())


def test_the_heart_beats_while_idle_and_status_does_not_wait_for_a_step() -> None:
    release = threading.Event()
    entered = threading.Event()

    def slow(_: StepBatch) -> None:
        entered.set()
        release.wait(20)

    async def main() -> None:
        client = make_client(HistoryExecutor(64, fail=slow))
        first = (await client.status()).heartbeat
        for _ in range(200):
            if (await client.status()).heartbeat > first:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("no beat")
        reader = asyncio.create_task(collect(client.generate(make("a", max_tokens=2))))
        await asyncio.to_thread(entered.wait, 20)
        status = await asyncio.wait_for(client.status(), 1)
        assert status.num_running == 1
        release.set()
        await reader
        await client.close()

    asyncio.run(main())
