"""One cell in a process of its own: load, touch the whole pool, run the largest step, compare.

    python benchmarks/accuracy/load.py DIRECTORY WEIGHTS KV CONTEXT CONCURRENCY

Prints planned and measured bytes as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from openautoglm.bench.batches import Row, random_step
from openautoglm.engine.assemble import OpenedEngine, open_engine, prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.probe.process_memory import measure_process_memory, peak_resident_bytes
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.plan import Component, Part
from openautoglm.text.template import ChatTemplate

COMPARED = (Component.WEIGHTS, Component.WORKSPACE)


def measure(directory: str, goal: Goal) -> dict[str, object]:
    """Load, touch and step in this process; return planned and measured bytes.

    `runtime` is measured as what the process tree holds beside the model's own arrays when everything has been used:
    interpreter, libraries, tokenizer, the process that renders chat templates, threads, whatever else there is.
    """
    # First, as in a server: while a large process starts another one, its pages seem to be there twice.
    template = ChatTemplate.from_directory(Path(directory))
    template.render([{"role": "user", "content": "hello"}])
    opened = open_engine(prepare(EngineOptions(model=directory, goal=goal, cache="off")))
    plan, executor = opened.plan, opened.executor
    executor.touch()
    run_largest_step(opened)
    resident = measure_process_memory().pss_bytes
    arrays = executor.weight_bytes + executor.kv_bytes + executor.workspace_bytes - executor.untouched_bytes
    planned = plan.breakdown
    expected_blocks = goal_blocks(goal)
    template.close()
    return {
        "num_parameters": plan.num_parameters,
        "num_blocks": plan.num_blocks,
        "expected_blocks": expected_blocks,
        "planned": {
            "weights": planned.weight_bytes,
            "kv": planned.kv_bytes,
            "workspace": planned.workspace_bytes,
            "runtime": planned.runtime_bytes,
            "peak": planned.peak_bytes,
        },
        "measured": {
            "weights": executor.weight_bytes,
            "kv": executor.kv_bytes,
            "workspace": executor.workspace_bytes,
            "runtime": resident - arrays,
            "peak": peak_resident_bytes(),
        },
        "planned_parts": _parts([part for component in COMPARED for part in planned.parts_of(component)]),
        "measured_parts": _parts(executor.parts()),
    }


def goal_blocks(goal: Goal) -> int:
    """Return the blocks of 16 tokens that context and concurrency imply."""
    assert goal.context_tokens is not None
    assert goal.concurrency is not None
    return goal.concurrency * -(-goal.context_tokens // 16)


def run_largest_step(opened: OpenedEngine) -> None:
    """Fill every sequence to its context, `max_step_tokens` at a time, sampling with all that costs memory."""
    plan, vocab_size = opened.plan, opened.executor.layout().vocab_size
    blocks_each = plan.num_blocks // plan.concurrency
    chunk = min(plan.context_tokens, plan.max_step_tokens // plan.concurrency)
    rows = [
        Row(
            blocks=tuple(range(index * blocks_each, (index + 1) * blocks_each)),
            num_cached=plan.context_tokens - chunk,
            num_new=chunk,
        )
        for index in range(plan.concurrency)
    ]
    step = random_step(rows, vocab_size=vocab_size, seed=1, sample=True)
    assert step.sample is not None
    history = plan.context_tokens
    sample = replace(
        step.sample,
        temperatures=np.ones(len(rows), dtype=np.float32),
        top_ps=np.full(len(rows), 0.9, dtype=np.float32),
        repetition_penalties=np.full(len(rows), 1.1, dtype=np.float32),
        num_logprobs=np.full(len(rows), 20, dtype=np.int32),
        history_offsets=np.arange(0, (len(rows) + 1) * history, history, dtype=np.int32),
        history_tokens=np.arange(len(rows) * history, dtype=np.int32) % vocab_size,
        history_prompt_lengths=np.full(len(rows), history // 2, dtype=np.int32),
    )
    opened.executor.submit(replace(step, sample=sample)).result()


def _parts(parts: Iterable[Part]) -> dict[str, int]:
    return {f"{part.component}: {part.name}": part.num_bytes for part in parts}


if __name__ == "__main__":
    directory, weights, kv, context, concurrency = sys.argv[1:]
    wished = Goal(
        quant=NumberFormat(weights),
        kv=NumberFormat(kv),
        context_tokens=int(context),
        concurrency=int(concurrency),
    )
    print(json.dumps(measure(directory, wished)))
