"""The ablation's parts against counts by hand, and a small real run, so that the program keeps working."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import ablation
from ablated.comparisons import CONTIGUOUS, PLAIN, REUSING, ChangedError, Comparison, Pair, Side, check_rounds
from ablated.report import added_shares, difference, saved_share
from ablated.run import Run, mean_median_late, run
from ablated.variants import AblatedEngine, ContiguousPool, HighWater, Variant, Watch
from ablated.workload import WorkloadShape, make_workload
from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.errors import OverloadedError
from openautoglm.llm import LLM
from openautoglm.spec.goal import Goal
from openautoglm.spec.sampling import SamplingParams

MIXED = WorkloadShape(
    num_requests=7, shared_tokens=0, own_prompt_tokens=(20, 90), max_tokens=60, answer_tokens=(2, 20), seed=3
)
SHARED = replace(MIXED, shared_tokens=112, own_prompt_tokens=(20, 40))
VOCAB_SIZE = 4096


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenedEngine]:
    goal = Goal(memory_bytes=1 << 30, context_tokens=256, concurrency=4, num_threads=1)
    prepared = prepare(EngineOptions(model="demo", goal=goal, cache="off"))
    # A step takes less than what prompts share, so that the second one finds what the first has computed.
    result = open_engine(replace(prepared, plan=replace(prepared.plan, max_step_tokens=64)))
    yield result
    result.engine.close()


def a_run(**changes: object) -> Run:
    base = Run(
        outputs=((1, 2, 3), (4,)),
        first_token_seconds=(1.0, 2.0),
        token_gap_seconds=(0.5, 0.5),
        seconds=4.0,
        high_water=HighWater(live_blocks=10),
        block_bytes=100,
        num_pool_blocks=20,
        resident_bytes=1,
        prefix_hit_tokens=0,
        num_preemptions=0,
        others_busy_cores=0.0,
    )
    return replace(base, **changes)


def test_lengths_are_log_uniform_within_their_bounds():
    shape = replace(MIXED, num_requests=4000, own_prompt_tokens=(4, 256), answer_tokens=(1, 2), max_tokens=2)
    asks = make_workload(shape, 50)
    lengths = [len(ask.prompt) for ask in asks]
    assert (min(lengths), max(lengths)) == (4, 256)
    assert 0.9 < statistics.median(lengths) / math.sqrt(4 * 256) < 1.1
    assert {ask.answer_tokens for ask in asks} == {1, 2}
    assert {token for ask in asks for token in ask.prompt} == set(range(50))


def test_workloads_repeat_and_share_what_they_say():
    asks = make_workload(SHARED, VOCAB_SIZE)
    assert asks == make_workload(SHARED, VOCAB_SIZE)
    assert asks != make_workload(replace(SHARED, seed=4), VOCAB_SIZE)
    assert len({ask.prompt[:112] for ask in asks}) == 1
    assert len({ask.prompt[112:] for ask in asks}) == len(asks)
    assert all(132 <= len(ask.prompt) <= 152 for ask in asks)


@pytest.mark.parametrize(
    "wrong",
    [{"own_prompt_tokens": (0, 4)}, {"answer_tokens": (5, 4)}, {"answer_tokens": (5, 61)}, {"num_requests": 0}],
)
def test_workloads_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must lie|longer than|at least one"):
        replace(MIXED, **wrong)


def test_contiguous_ranges_are_the_first_that_fit():
    pool = ContiguousPool(8, 16)
    first, second = pool.allocate(3), pool.allocate(2)
    assert (first, second) == ([0, 1, 2], [3, 4])
    pool.release([0, 1, 2])
    assert pool.num_free == 6
    assert pool.allocate(4) is None, "free blocks 0 to 2 and 5 to 7 are no range of four"
    assert pool.num_free == 6
    last, again = pool.allocate(3), pool.allocate(3)
    assert (last, again) == ([0, 1, 2], [5, 6, 7])
    assert pool.allocate(1) is None
    pool.integrity_check([second, last, again])


def test_figures_by_hand():
    assert mean_median_late([]) == (0.0, 0.0, 0.0)
    assert mean_median_late([float(value) for value in range(100, 0, -1)]) == (50.5, 50.5, 96.0)
    assert saved_share(47, 100) == pytest.approx(0.53)
    pairs = [Pair(on=a_run(seconds=seconds), off=a_run()) for seconds in (2.0, 5.0, 4.4)]
    added = added_shares(pairs, lambda one: one.seconds)
    assert (added.median, added.least, added.most) == pytest.approx((0.1, -0.5, 0.25))
    found = difference([(1, 2, 3, 4), (5, 6), (7, 8)], [(1, 9, 3, 9), (5, 6), (0, 8)])
    assert (found.num_tokens, found.num_different_tokens) == (8, 3)
    assert (found.num_requests, found.num_equal_requests, found.median_equal_beginning) == (3, 1, 1)


def test_changes_that_must_not_be_are_found():
    comparison = Comparison(name="x", on=Side(variant=REUSING), off=Side(variant=PLAIN), workload="mixed")
    good, other = Pair(on=a_run(), off=a_run()), a_run(outputs=((1, 2, 0), (4,)))
    check_rounds(comparison, [good, good])
    with pytest.raises(ChangedError, match="on and off"):
        check_rounds(comparison, [Pair(on=other, off=a_run())])
    check_rounds(replace(comparison, exact=False), [Pair(on=other, off=a_run())])
    for changed in (Pair(on=other, off=a_run()), Pair(on=a_run(), off=other)):
        with pytest.raises(ChangedError, match="round 2 gives other tokens"):
            check_rounds(replace(comparison, exact=False), [good, changed])
    with pytest.raises(ChangedError, match="round 2 takes other blocks"):
        check_rounds(comparison, [good, Pair(on=a_run(high_water=HighWater(live_blocks=11)), off=a_run())])


def test_variants_give_the_products_tokens_and_the_blocks_they_should(opened):
    asks, shared = make_workload(MIXED, VOCAB_SIZE), make_workload(SHARED, VOCAB_SIZE)
    with LLM("demo", memory=1 << 30, context=256, concurrency=4, threads=1, cache="off") as llm:
        sampling = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        whole = [one.choices[0].tokens for one in llm.generate([ask.prompt for ask in asks + shared], sampling)]
    expected = tuple(tokens[: ask.answer_tokens] for tokens, ask in zip(whole, asks + shared, strict=True))

    paged = run(opened, PLAIN, asks, concurrency=3)
    contiguous = run(opened, CONTIGUOUS, asks, concurrency=3)
    squeezed = run(opened, CONTIGUOUS, asks, concurrency=3, num_blocks=paged.high_water.live_blocks)
    assert paged.outputs == contiguous.outputs == squeezed.outputs == expected[:7]
    # The same sequences run in the same steps; only what they hold differs.
    assert contiguous.high_water == replace(paged.high_water, live_blocks=paged.high_water.request_blocks)
    assert paged.high_water.live_blocks <= paged.high_water.answer_blocks < paged.high_water.request_blocks
    assert squeezed.high_water.live_blocks <= paged.high_water.live_blocks
    assert squeezed.high_water.mean_running < paged.high_water.mean_running

    alone, reused = (run(opened, variant, shared, concurrency=3) for variant in (PLAIN, REUSING))
    assert alone.outputs == reused.outputs == expected[7:]
    assert (alone.prefix_hit_tokens, reused.prefix_hit_tokens) == (0, 6 * 112)
    # Three sequences at once hold the seven shared blocks once instead of three times.
    assert alone.high_water.live_blocks - reused.high_water.live_blocks == 2 * 7
    assert len(paged.first_token_seconds) == 7
    assert len(paged.token_gap_seconds) == sum(ask.answer_tokens - 1 for ask in asks)
    # The pool's memory was given back before each run, so that each shows its own.
    assert all(0 < one.resident_bytes <= opened.executor.kv_bytes for one in (paged, contiguous, alone, reused))


def test_a_request_takes_its_range_when_it_is_admitted(opened):
    watch = Watch(answer_tokens={"a": 5, "b": 5}, context_tokens=256)
    engine = AblatedEngine(opened, CONTIGUOUS, watch, max_running=2, num_blocks=8)
    sampling = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    for name in "ab":
        engine.add(GenerationRequest(request_id=name, prompt_tokens=(7,) * 20, sampling=sampling))
    engine.step()
    tables = [sequence.blocks for sequence in engine._scheduler.running]
    assert tables == [[0, 1, 2, 3, 4]], "70 tokens are five blocks, and three are left"
    engine.abort("a")
    engine.step()
    assert [sequence.request.request_id for sequence in engine._scheduler.running] == ["b"]
    engine.abort("b")

    engine = AblatedEngine(opened, CONTIGUOUS, watch, max_running=2, num_blocks=4)
    with pytest.raises(OverloadedError, match="may need 5 blocks"):
        engine.add(GenerationRequest(request_id="a", prompt_tokens=(7,) * 20, sampling=sampling))


def test_ranges_cannot_be_shared():
    with pytest.raises(ValueError, match="contiguous ranges cannot"):
        Variant(paging=False, prefix=True)


def test_the_program_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    arguments = "ablation.py demo --threads 1 --context 256 --concurrency 3 --requests 5 --prompt 20 60 --shared 40"
    arguments += f" --own 5 20 --max-tokens 30 --answer 2 12 --rounds 2 --label small --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    ablation.main()
    (table,) = tmp_path.glob("ablation-demo-*-small.md")
    document = json.loads(table.with_suffix(".json").read_text())
    rows = document["comparisons"]
    assert capsys.readouterr().out.strip() == table.read_text().strip()
    assert list(rows) == [one.name for one in ablation.COMPARISONS]
    assert all(f"| {name} | on |" in table.read_text() for name in rows)
    # 64 dimensions: two bytes each, against one each and four of scale.
    assert rows["int8 KV"]["saved_share"] == 1 - 68 / 128
    assert rows["prefix reuse, nothing shared"]["saved_share"] == 0
    assert rows["paging"]["saved_share"] > 0
    tight = rows["paging, equal memory"]
    assert tight["on"]["pool_bytes"] == tight["off"]["pool_bytes"] == rows["paging"]["on"]["peak_bytes"]
    assert tight["off"]["peak_bytes"] <= tight["off"]["pool_bytes"] < rows["paging"]["off"]["peak_bytes"]
    assert all(not row["outputs"]["num_different_tokens"] for name, row in rows.items() if name != "int8 KV")
    assert all(len(row["on"]["rounds_seconds"]["whole workload"]) == 2 for row in rows.values())
