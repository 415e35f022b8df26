"""Loads or steps while native allocations fail, the Nth each time; writes what came of it as JSON.

Run with the library of failing_allocations.cpp preloaded: `child.py LIBRARY step|load|pack|restore DIRECTORY`. The last
two are loads with layers on disk, which pack their file into the directory or find it there.

Each fault counts from a process that has loaded once. Before that, nanobind's table of the objects that Python knows
grows, out of reach of any handler: where those few kilobytes cannot be had, the process ends.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.engine.assemble import EngineOptions, Prepared, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import OutOfMemoryError
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.families.registry import weight_map
from openautoglm.memory.ledger import Ledger
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import parse_placement
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer

MOST = 200
SETTLED = 60  # loads after which the allocator's own memory no longer grows
PROMPTS = ([65, 300, 400] * 15, [70] * 33, [500])


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process holds that a failed load could leave behind."""

    anonymous_bytes: int
    num_files: int
    num_threads: int


def held() -> Held:
    gc.collect()
    return Held(
        anonymous_bytes=measure_process_memory().anonymous_bytes,
        num_files=len(list(Path("/proc/self/fd").iterdir())),
        num_threads=len(list(Path("/proc/self/task").iterdir())),
    )


def load(prepared: Prepared, ledger: Ledger, cache: PackedCache | None = None) -> NativeExecutor:
    with Checkpoint.open(prepared.directory()) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(prepared.spec, prepared.config, shapes)
        return load_model(checkpoint, prepared.spec, weights, prepared.plan, ledger=ledger, cache=cache)


def answer(library: ctypes.CDLL, prepared: Prepared, cache: PackedCache | None) -> object:
    """Load, answer three requests, and close; return the fingerprint and the answers."""
    executor = load(prepared, Ledger(prepared.plan.budget_bytes), cache)
    engine = new_engine(prepared, executor)
    fingerprint = executor.determinism()
    found, _ = run_requests(library, engine, 0)
    engine.close()
    return fingerprint, found


def fail_loads(library: ctypes.CDLL, prepared: Prepared, cache: PackedCache | None, *, pack: bool) -> dict[str, object]:
    """Load with the Nth allocation failing, until a load takes fewer: each must be whole or a typed error."""
    outcomes: Counter[str] = Counter()
    ledger = Ledger(prepared.plan.budget_bytes)
    expected = answer(library, prepared, cache)
    before = held()
    number = reached = 0
    while reached >= number:
        number += 1
        if number == SETTLED:
            before = held()
        if pack and cache is not None:
            for path in cache.directory.iterdir():
                path.unlink()
        library.fail_allocation(number, 0)
        try:
            executor = load(prepared, ledger, cache)
        except OutOfMemoryError:
            outcomes["OutOfMemoryError"] += 1
        except BaseException as error:  # noqa: BLE001  whatever else it is, the test shows it
            outcomes[f"{type(error).__name__}: {error}"] += 1
        else:
            outcomes["loaded"] += 1
            executor.close()
            del executor
        reached = library.allocations_counted()
        assert ledger.in_use_bytes == 0, ledger.usage()
    after = held()
    return {
        "outcomes": outcomes,
        "reached": reached,
        "grown_bytes": after.anonymous_bytes - before.anonymous_bytes,
        "left_files": after.num_files - before.num_files,
        "left_threads": after.num_threads - before.num_threads,
        "same_answer": answer(library, prepared, cache) == expected,
    }


def new_engine(prepared: Prepared, executor: NativeExecutor) -> Engine:
    tokenizer = Tokenizer.from_directory(prepared.directory())
    return Engine(executor, tokenizer, eos_token_ids=(), context_tokens=128, max_running=4)


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
    engine = new_engine(prepared, load(prepared, Ledger(prepared.plan.budget_bytes)))
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
    work, directory = sys.argv[2], Path(sys.argv[3])
    on_disk = work in ("pack", "restore")
    goal = Goal(context_tokens=128, concurrency=4, quant=NumberFormat.INT8, num_threads=1 if on_disk else 2)
    if on_disk:
        goal = replace(goal, placement=parse_placement("layers.1=disk,layers.3=disk"), offload_directory=str(directory))
    prepared = prepare(EngineOptions(model="demo", goal=goal, cache="off"), to_run=True)
    if work == "step":
        result = fail_steps(library, prepared)
    else:
        cache = PackedCache(directory=directory, spare_disk_bytes=0) if on_disk else None
        result = fail_loads(library, prepared, cache, pack=work == "pack")
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
