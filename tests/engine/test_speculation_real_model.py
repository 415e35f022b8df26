"""The embedded model with drafts: the same bytes as without, for every kind of sampling, format and batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.speculation import PromptLookup
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.reuse import Speculation
from openautoglm.spec.sampling import SamplingParams

CODE = """def first(values):
    if not values:
        raise ValueError("values is empty")
    return values[0]


def last(values):
    if not values:
        raise ValueError("values is empty")
    return values[-1]


"""
PROMPTS = (CODE + "def first(values):\n    if not", CODE * 2, "one two three " * 12)
SAMPLINGS = (
    SamplingParams(max_tokens=72, temperature=0.0, seed=1, ignore_eos=True, logprobs=2),
    SamplingParams(max_tokens=48, temperature=0.3, top_p=0.9, seed=2, n=2, ignore_eos=True, logprobs=0),
    SamplingParams(max_tokens=64, temperature=0.0, seed=3, repetition_penalty=1.05, frequency_penalty=0.02),
    SamplingParams(max_tokens=64, temperature=0.5, top_k=20, min_p=0.02, seed=4, stop=("raise", "three one")),
    SamplingParams(max_tokens=64, temperature=0.0, seed=5, min_tokens=40, logit_bias=((10, 2.0), (32, -1.0))),
)
Answer = list[object]


def run(opened: OpenedEngine, mode: Speculation, wanted: list[GenerationRequest]) -> tuple[dict[object, Answer], int]:
    """Return tokens, texts, logprobs and ends of each choice, and the number of steps."""
    engine, found = opened.engine, dict[object, Answer]()
    engine.pool.drop_cached()
    engine.lookup = PromptLookup(engine.scheduler, mode)
    before = engine.status().num_steps
    for request in wanted:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length", "stop"), event
            news = [event.tokens, event.text, event.logprobs, event.finish_reason, event.stop_reason]
            found.setdefault((event.request_id, event.choice), []).extend(news)
        engine.integrity_check()
    return found, engine.status().num_steps - before


@pytest.mark.parametrize(
    ("quant", "kv", "threads"),
    [
        (NumberFormat.INT8, NumberFormat.BF16, 1),
        (NumberFormat.INT4, NumberFormat.INT8, 1),
        (NumberFormat.BF16, NumberFormat.F32, 2),
    ],
)
def test_no_byte_of_an_answer_depends_on_drafts(quant: NumberFormat, kv: NumberFormat, threads: int) -> None:
    goal = Goal(memory_bytes=1 << 30, context_tokens=512, concurrency=8, quant=quant, kv=kv, num_threads=threads)
    opened = open_engine(prepare(EngineOptions(model="demo", goal=goal)))
    try:
        requests = [
            GenerationRequest(request_id=f"{p}/{s}", prompt_tokens=tuple(opened.tokenizer.encode(prompt)),
                              sampling=replace(sampling, seed=p + 10 * s))
            for p, prompt in enumerate(PROMPTS)
            for s, sampling in enumerate(SAMPLINGS)
        ]  # fmt: skip
        plain, plain_steps = run(opened, Speculation.OFF, requests)
        together, _ = run(opened, Speculation.PROMPT_LOOKUP, requests)
        assert together == plain
        num_steps = drafted = accepted = 0
        for request in requests:
            alone, steps = run(opened, Speculation.PROMPT_LOOKUP, [request])
            assert alone == {key: answer for key, answer in plain.items() if key[0] == request.request_id}  # type: ignore[index]
            status = opened.engine.status().speculation
            assert status is not None
            num_steps += steps
            drafted += status.draft_tokens
            accepted += status.accepted_tokens
        assert accepted > 100, "there was something to be wrong about"
        assert accepted < drafted, "and drafts that were"
        assert plain_steps > 0
    finally:
        opened.engine.close()
