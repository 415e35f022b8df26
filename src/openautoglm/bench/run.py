"""One bench run: the machine's limits, the load, every scenario, memory, and the limits again."""

from __future__ import annotations

import time
from dataclasses import replace

from openautoglm.bench.measure import DECODE_BATCHES, Subject, measure_all
from openautoglm.bench.report import BenchReport
from openautoglm.bench.roofline import best_of, measure_roofline
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import OFF
from openautoglm.engine.assemble import Prepared, prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.weights_on_disk import packed_cache
from openautoglm.errors import DoesNotFitError, UnsupportedModelError
from openautoglm.executor.load import chosen_instruction_set, load_model
from openautoglm.executor.measured import measured_memory
from openautoglm.families.registry import weight_map
from openautoglm.probe.process_memory import measure_process_memory, reset_peak_resident
from openautoglm.progress import ProgressCallback
from openautoglm.spec.goal import Goal
from openautoglm.spec.notices import Notices
from openautoglm.spec.offload import OffloadMode

DEFAULT_CONTEXT_TOKENS = 256


def bench_model(
    reference: str, goal: Goal, *, repetitions: int, progress: ProgressCallback | None = None
) -> BenchReport:
    """Load a model and measure it; what the goal leaves open is planned for 32 sequences of 256 tokens, or fewer.

    Takes the plan's memory, and before and after it the probe's. Raises what planning and loading raise.
    """
    prepared = prepare_bench(reference, goal)
    plan = prepared.plan
    if not plan.runnable:
        raise UnsupportedModelError(
            f"{plan.model} cannot run yet, so it cannot be measured: {', '.join(plan.unsupported)}",
            features=plan.unsupported,
        )
    isa = chosen_instruction_set()
    before = measure_roofline(plan.num_threads, isa)
    directory = prepared.directory(progress=progress)
    reset_peak_resident()
    runtime_bytes = measure_process_memory().pss_bytes
    started = time.perf_counter()
    with Checkpoint.open(directory) as checkpoint, packed_cache(plan, OFF, Notices()) as cache:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(prepared.spec, prepared.config, shapes)
        executor = load_model(checkpoint, prepared.spec, weights, plan, progress=progress, cache=cache)
    load_seconds = time.perf_counter() - started
    try:
        subject = Subject(executor=executor, spec=prepared.spec, formats=plan.formats)
        measurements = tuple(measure_all(subject, repetitions=repetitions))
        memory = measured_memory(executor, runtime_bytes)
    finally:
        executor.close()
    return BenchReport(
        plan=plan,
        processor=prepared.machine.cpu.name,
        roofline=best_of(before, measure_roofline(plan.num_threads, isa)),
        load_seconds=load_seconds,
        measurements=measurements,
        memory=memory,
    )


def prepare_bench(reference: str, goal: Goal) -> Prepared:
    """Plan for the largest batch that fits; what the user set is kept, and a refusal of it stands.

    Layers go on disk where not even one sequence fits in memory.
    """
    context_tokens = goal.context_tokens or DEFAULT_CONTEXT_TOKENS
    batches = (goal.concurrency,) if goal.concurrency else tuple(reversed(DECODE_BATCHES))
    in_memory = goal if goal.placement.disk else replace(goal, offload=OffloadMode.NONE)
    wishes = [(in_memory if goal.offload is OffloadMode.AUTO else goal, batch) for batch in batches]
    for wish, batch in (*wishes, (goal, batches[-1])):
        try:
            wished = replace(wish, context_tokens=context_tokens, concurrency=batch)
            return prepare(EngineOptions(model=reference, goal=wished, cache=OFF), to_run=True)
        except DoesNotFitError as error:
            refusal = error
    raise refusal
