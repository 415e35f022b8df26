"""Steps while native allocations fail, the Nth each time; writes what came of it as JSON.

Run with the library of failing_allocations.cpp preloaded: `child.py LIBRARY`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.engine.assemble import EngineOptions, Prepared, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.families.registry import weight_map
from openautoglm.memory.ledger import Ledger
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer

MOST = 200
PROMPTS = ([65, 300, 400] * 15, [70] * 33, [500])


def load(prepared: Prepared, ledger: Ledger) -> NativeExecutor:
    with Checkpoint.open(prepared.directory()) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(prepared.spec, prepared.config, shapes)
        return load_model(checkpoint, prepared.spec, weights, prepared.plan, ledger=ledger)


def run_requests(library: ctypes.CDLL, engine: Engine, number: int) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Run three requests with the Nth allocation of their steps failing; return how each ended, with its tokens."""
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)
    for index, prompt in enumerate(PROMPTS):
        engine.add(GenerationRequest(request_id=str(index), prompt_tokens=tuple(prompt), sampling=sampling))
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(PROMPTS))}
    ends: dict[str, str] = {}
    library.fail_allocation(number, 0)
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id].extend(event.tokens)
            if event.finish_reason is not None:
                ends[event.request_id] = event.finish_reason
    counted = library.allocations_counted()
    engine.integrity_check()
    return [(ends[name], tuple(tokens[name])) for name in tokens], counted


def fail_steps(library: ctypes.CDLL, prepared: Prepared) -> dict[str, object]:
    """Compare with a run in which nothing failed: a choice that ended well must have the same tokens."""
    executor = load(prepared, Ledger(prepared.plan.budget_bytes))
    engine = Engine(
        executor, Tokenizer.from_directory(prepared.directory()), eos_token_ids=(), context_tokens=128, max_running=4
    )
    expected, _ = run_requests(library, engine, 0)
    outcomes: Counter[str] = Counter()
    reached = 0
    for number in range(1, MOST + 1):
        found, reached = run_requests(library, engine, number)
        for (end, tokens), (_, right) in zip(found, expected, strict=True):
            whole = end == "length" and tokens == right
            outcomes["whole" if whole else end if tokens == right[: len(tokens)] else "other tokens"] += 1
        if reached < number:
            break
    used = engine.pool.num_live
    engine.close()
    return {"outcomes": outcomes, "reached": reached, "used_blocks": used}


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.fail_allocation.argtypes = [ctypes.c_long, ctypes.c_size_t]
    library.allocations_counted.restype = ctypes.c_long
    goal = Goal(context_tokens=128, concurrency=4, quant=NumberFormat.INT8, num_threads=2)
    prepared = prepare(EngineOptions(model="demo", goal=goal, cache="off"), to_run=True)
    sys.stdout.write(json.dumps(fail_steps(library, prepared)))


if __name__ == "__main__":
    main()
