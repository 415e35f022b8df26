"""The bitwise promise on the embedded model: whatever else runs, the same tokens and the same logprobs by bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.explain import HISTORY_BYTES
from openautoglm.engine.process import EngineProcess
from openautoglm.engine.sessions import SESSION_INDEX_BYTES
from openautoglm.errors import OutOfMemoryError, UnsupportedModelError
from openautoglm.progress import Progress
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.sampling import SamplingParams
from tests.engine.test_local import drain

PROMPT = """def read_lines(path, encoding="utf-8"):
    \"\"\"Read a text file and return its lines without the line ends.\"\"\"
    with open(path, encoding=encoding) as file:
"""
OTHERS = (
    "import os\nimport sys\n\n",
    "class Queue:\n    def __init__(self):\n",
    "The quick brown fox",
    "x",
    "for index in range(10):\n    print(index)\n" * 4,
    "Returns the number of bytes that ",
)
SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=48, temperature=0.0, logprobs=3, ignore_eos=True),
    "sampled": SamplingParams(max_tokens=48, temperature=0.9, top_p=0.95, seed=7, logprobs=3, ignore_eos=True),
    "penalised": SamplingParams(
        max_tokens=48, temperature=0.7, top_k=50, seed=11, logprobs=1, ignore_eos=True,
        repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1, logit_bias=((40, 2.0),),
    ),
}  # fmt: skip
# weights and KV cache
QUANTS = (
    (NumberFormat.BF16, None),
    (NumberFormat.INT8, None),
    (NumberFormat.INT4, None),
    (NumberFormat.INT8, NumberFormat.INT8),
    (NumberFormat.INT4, NumberFormat.FP8),
)


@contextmanager
def opened(
    quant: NumberFormat, kv: NumberFormat | None = None, *, num_threads: int = 1, **changes: int
) -> Iterator[OpenedEngine]:
    goal = Goal(memory_bytes=1 << 30, context_tokens=512, concurrency=8, quant=quant, kv=kv, num_threads=num_threads)
    prepared = prepare(EngineOptions(model="demo", goal=goal))
    result = open_engine(replace(prepared, plan=replace(prepared.plan, **changes)))
    try:
        yield result
    finally:
        result.engine.close()


def request(engine: OpenedEngine, name: str, text: str, sampling: SamplingParams) -> GenerationRequest:
    return GenerationRequest(request_id=name, prompt_tokens=tuple(engine.tokenizer.encode(text)), sampling=sampling)


def run(engine: Engine, requests: list[GenerationRequest]) -> dict[str, bytes]:
    """Run to the end; return each request's tokens and logprobs as bytes."""
    for one in requests:
        engine.add(one)
    outputs: dict[str, bytes] = {one.request_id: b"" for one in requests}
    finished = set()
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length"), event
            for logprob in event.logprobs:
                pairs = [value for pair in logprob.top for value in pair]
                outputs[event.request_id] += struct.pack(
                    f"<if{'if' * len(logprob.top)}", logprob.token, logprob.logprob, *pairs
                )
            finished |= {event.request_id} if event.finish_reason else set()
        engine.integrity_check()
    assert finished == set(outputs)
    return outputs


@pytest.mark.parametrize(("quant", "kv"), QUANTS)
def test_batch_cache_chunks_and_preemption_change_no_byte(quant: NumberFormat, kv: NumberFormat | None) -> None:
    expected: dict[str, bytes] = {}
    with opened(quant, kv) as engine:
        for name, sampling in SAMPLINGS.items():
            expected[name] = run(engine.engine, [request(engine, name, PROMPT, sampling)])[name]
            engine.engine._pool.drop_cached()
        assert len(set(expected.values())) == len(expected)
        assert min(map(len, expected.values())) >= 48 * 16

        for name, sampling in SAMPLINGS.items():
            assert run(engine.engine, [request(engine, name, PROMPT, sampling)])[name] == expected[name], "again"
        hits = engine.engine.status().prefix_hit_tokens
        assert hits > 0
        for name, sampling in SAMPLINGS.items():
            assert run(engine.engine, [request(engine, name, PROMPT, sampling)])[name] == expected[name], "cached"
        assert engine.engine.status().prefix_hit_tokens > hits

        engine.engine._pool.drop_cached()
        for name, sampling in SAMPLINGS.items():
            batch = [request(engine, f"o{i}", text, sampling) for i, text in enumerate(OTHERS)]
            batch.insert(3, request(engine, name, PROMPT, sampling))
            assert run(engine.engine, batch)[name] == expected[name], "in a batch of 7"

    with opened(quant, kv, max_step_tokens=5, max_step_rows=5, num_threads=2) as engine:
        for name, sampling in SAMPLINGS.items():
            assert run(engine.engine, [request(engine, name, PROMPT, sampling)])[name] == expected[name], "chunks of 5"
            engine.engine._pool.drop_cached()

    with opened(quant, kv, num_blocks=14) as engine:
        for name, sampling in SAMPLINGS.items():
            before = engine.engine.status().num_preemptions
            long = replace(sampling, max_tokens=100)
            batch = [request(engine, f"o{i}", text, long) for i, text in enumerate(OTHERS[:4])]
            batch.append(request(engine, name, PROMPT, sampling))
            assert run(engine.engine, batch)[name] == expected[name], "preempted"
            assert engine.engine.status().num_preemptions > before


def test_choices_of_one_request_equal_requests_with_their_prompt_computed_again() -> None:
    sampling = replace(SAMPLINGS["sampled"], n=4)
    with opened(NumberFormat.INT8) as engine:
        texts: dict[int, list[int]] = {choice: [] for choice in range(4)}
        engine.engine.add(request(engine, "n", PROMPT, sampling))
        while engine.engine.has_work:
            for event in engine.engine.step():
                texts[event.choice] += event.tokens
        assert len({tuple(tokens) for tokens in texts.values()}) == 4
        engine.engine._pool.drop_cached()
        engine.engine.add(request(engine, "one", PROMPT, SAMPLINGS["sampled"]))
        alone = [token for _ in range(60) for event in engine.engine.step() for token in event.tokens]
        assert alone == texts[0]


def test_the_text_is_the_decoded_tokens() -> None:
    with opened(NumberFormat.INT8) as engine:
        engine.engine.add(request(engine, "a", PROMPT, SAMPLINGS["sampled"]))
        events = []
        while engine.engine.has_work:
            events += engine.engine.step()
        tokens = [token for event in events for token in event.tokens]
        assert "".join(event.text for event in events) == engine.tokenizer.decode(tokens)
        assert events[-1].completion_tokens == 48


def test_opening_reports_progress_and_a_receipt() -> None:
    news: list[Progress] = []
    prepared = prepare(EngineOptions(model="demo", goal=Goal(memory_bytes=1 << 30), max_queued=3))
    engine = open_engine(prepared, progress=news.append)
    try:
        assert news[-1].stage == "load"
        assert news[-1].done_bytes == news[-1].total_bytes > 0
        assert engine.description.plan_table.startswith("plan for demo")
        assert "unaccounted" in engine.receipt
        assert engine.description.max_queued_requests == 3
        assert engine.description.fingerprint == engine.executor.determinism()
        assert engine.engine.status().resident_bytes > 0
        assert engine.default_sampling.max_tokens is None
    finally:
        engine.engine.close()


def test_a_plan_that_cannot_run_is_not_loaded() -> None:
    prepared = prepare(EngineOptions(model="demo", goal=Goal(memory_bytes=1 << 30)))
    plan = replace(prepared.plan, unsupported=("a vision tower",))
    with pytest.raises(UnsupportedModelError, match="a vision tower") as error:
        open_engine(replace(prepared, plan=plan))
    assert error.value.features == ("a vision tower",)


def untimed(events: list[GenerationEvent]) -> list[GenerationEvent]:
    return [msgspec.structs.replace(event, queue_seconds=0.0, prefill_seconds=0.0) for event in events]


def test_the_real_worker_gives_the_same_bytes_and_its_heart_beats_in_a_step() -> None:
    sampling = SAMPLINGS["greedy"]
    goal: dict[str, Any] = {"memory_bytes": 1 << 30, "context_tokens": 512, "concurrency": 8, "num_threads": 1}
    with opened(NumberFormat.INT8, NumberFormat.INT8) as engine:
        one = request(engine, "a", PROMPT, sampling)
        engine.engine.add(one)
        expected = []
        while engine.engine.has_work:
            expected += engine.engine.step()
    with EngineProcess(
        EngineOptions(model="demo", goal=Goal(quant=NumberFormat.INT8, kv=NumberFormat.INT8, **goal))
    ) as process:
        description = process.start()
        assert description.fingerprint == engine.description.fingerprint

        async def main() -> None:
            client = process.client()
            beats, status = process.heartbeat, await client.status()
            assert untimed(await drain(client.generate(one))) == untimed(expected)
            steps = (await client.status()).num_steps - status.num_steps
            assert process.heartbeat - beats > 2 * steps, "layers beat, not only steps"
            await client.close()

        asyncio.run(main())
        assert process.stop() == 0


def test_the_ledger_holds_what_the_plan_said() -> None:
    opened = open_engine(prepare(EngineOptions(model="demo", goal=Goal(context_tokens=256, concurrency=2))))
    planned = opened.plan.breakdown
    assert opened.ledger.usage() == {
        "runtime": planned.runtime_bytes - 2 * 16 * 560,
        "block index": 2 * 16 * 560,
        "request history": HISTORY_BYTES,
        "session index": SESSION_INDEX_BYTES,
        "headroom": planned.headroom_bytes - HISTORY_BYTES - SESSION_INDEX_BYTES,
        "weights": planned.weight_bytes,
        "KV pool": planned.kv_bytes,
        "workspace": planned.workspace_bytes,
    }
    opened.engine.close()
    assert opened.ledger.usage() == {
        "runtime": planned.runtime_bytes - 2 * 16 * 560,
        "block index": 2 * 16 * 560,
        "request history": HISTORY_BYTES,
        "session index": SESSION_INDEX_BYTES,
        "headroom": planned.headroom_bytes - HISTORY_BYTES - SESSION_INDEX_BYTES,
    }


def test_a_load_beyond_its_budget_is_refused_before_it_is_taken() -> None:
    prepared = prepare(EngineOptions(model="demo", goal=Goal(context_tokens=256, concurrency=2)))
    short = prepared.plan.breakdown.total_bytes - 1
    with pytest.raises(OutOfMemoryError, match="workspace asks for"):
        open_engine(replace(prepared, plan=replace(prepared.plan, budget_bytes=short)))
