"""From options to a running engine: describe, plan, load, warm up, receipt."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from openautoglm.checkpoint.hub import parse_reference, resolve, resolve_config
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import OFF
from openautoglm.engine.accounts import engine_accounts
from openautoglm.engine.client import EngineDescription
from openautoglm.engine.downgrades import note_downgrades
from openautoglm.engine.engine import Engine
from openautoglm.engine.explain import HISTORY_BYTES
from openautoglm.engine.grammars import Grammars
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.ladder import Ladder, LoadedBytes
from openautoglm.engine.options import EngineOptions as EngineOptions  # the name by which callers know this module
from openautoglm.engine.pinned import preload
from openautoglm.engine.report_files import ReportFiles, report_directory
from openautoglm.engine.sessions import SESSION_INDEX_BYTES
from openautoglm.engine.spill_tiers import check_spill_directory, open_spill
from openautoglm.engine.warmup import first_step, rehearse
from openautoglm.engine.watch import EngineMemory
from openautoglm.engine.weights_on_disk import disk_room, packed_cache, with_speed
from openautoglm.errors import ModelError, UnsupportedModelError
from openautoglm.executor.load import load_model
from openautoglm.executor.measured import measured_memory
from openautoglm.executor.native import NativeExecutor
from openautoglm.executor.protocol import Executor
from openautoglm.families.generation import GenerationDefaults, read_generation_defaults
from openautoglm.families.registry import describe, weight_map
from openautoglm.memory.allocations import AllocationTrace
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.memory.requests import request_space
from openautoglm.memory.runtime import block_index_bytes
from openautoglm.memory.spill_store import SpillStore
from openautoglm.planner.explain import plan_table
from openautoglm.planner.receipt import MeasuredMemory, receipt_as_dict, receipt_table
from openautoglm.planner.runtime_needs import runtime_needs
from openautoglm.planner.search import make_plan
from openautoglm.planner.step_cost import predict_step_cost
from openautoglm.probe.machine import probe_machine
from openautoglm.probe.pressure import PressureProbe
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.progress import ProgressCallback
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.machine import MachineSpec
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.spec.plan import Plan
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.grammar import GrammarCompiler
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.text.tokenizer_process import TokenizerCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model described and planned; nothing is loaded, and from the hub nothing but headers was fetched."""

    options: EngineOptions
    reference: str
    config: Mapping[str, object]
    spec: ArchSpec
    machine: MachineSpec
    plan: Plan

    def directory(self, *, progress: ProgressCallback | None = None) -> Path:
        """Return the checkpoint's directory; downloads what is not in the cache. Raises `HubError`."""
        return resolve(self.reference, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedEngine:
    """A loaded model. Closing `engine` frees it. `ledger` is the budget with what is charged to it.

    `memory` is for whoever steps the engine: its ladder acts between steps.
    """

    engine: Engine
    executor: NativeExecutor
    tokenizer: Tokenizer
    directory: Path
    plan: Plan
    receipt: str
    default_sampling: SamplingParams
    description: EngineDescription
    ledger: Ledger
    memory: EngineMemory


def prepare(options: EngineOptions, *, to_run: bool = False) -> Prepared:
    """Describe and plan a model from its config and headers.

    A model that cannot run here is planned all the same (`plan.unsupported`), unless it is wanted `to_run`: then
    `UnsupportedModelError` comes first, before anybody is told how much memory it would take. Raises `HubError`,
    `CheckpointError`, `ModelError`, `ConfigError` and `DoesNotFitError`.
    """
    parsed = parse_reference(options.model)
    config, headers = resolve_config(options.model)
    spec = describe(config)
    name = str(replace(parsed, quant=None))
    unsupported = NativeExecutor.supports(spec)
    if to_run:
        _check_supported(name, unsupported)
    if headers is not None and not unsupported:
        weight_map(spec, config, {name: tensor.shape for name, tensor in headers.items()})
    check_spill_directory(options.goal.spill)
    goal = options.goal if options.goal.quant is not None else replace(options.goal, quant=parsed.quant)
    machine = probe_machine()
    runtime = runtime_needs(spec, parsed, headers, server=options.server, packed_cache=options.cache != OFF)
    room = disk_room(goal, options.cache)
    plan = make_plan(spec, machine, goal, model=name, unsupported=unsupported, runtime=runtime, disk_room=room)
    plan = with_speed(plan, options.cache)
    return Prepared(options=options, reference=name, config=config, spec=spec, machine=machine, plan=plan)


def open_engine(
    prepared: Prepared,
    *,
    progress: ProgressCallback | None = None,
    heartbeat: Heartbeat | None = None,
    check: TokenizerCheck | None = None,
) -> OpenedEngine:
    """Load a planned model and return an engine that has run one small step.

    `progress` hears of the stages "download" and "load". `heartbeat` is advanced by the native step as well.
    `check` is the tokenizer's, where it was begun before. Raises
    `UnsupportedModelError` naming what the executor lacks, `HubError`, `CheckpointError`, `TokenizerError` and
    `OutOfMemoryError`, and with `strict` `DowngradeError`. Peak memory is the plan's.
    """
    plan, spec = prepared.plan, prepared.spec
    _check_supported(plan.model, plan.unsupported)
    notices = Notices(strict=prepared.options.strict)
    note_downgrades(notices, prepared.machine, plan, max_running=prepared.options.max_running)
    directory = prepared.directory(progress=progress)
    defaults = _generation_defaults(prepared, directory, notices)
    tokenizer = Tokenizer.from_directory(directory) if check is None else Tokenizer.from_check(check)
    tokenizer.check_vocabulary(spec.vocab_size)
    # A server's plan covers the HTTP process, which started this one, and its template worker too.
    tree = os.getppid() if prepared.options.server else None
    runtime_bytes = measure_process_memory(tree).pss_bytes
    ledger, index_charge = _open_ledger(plan)
    executor, files = _load(prepared, directory, ledger, notices, progress)
    store: SpillStore | None = None
    try:
        if heartbeat is not None:
            executor.set_heartbeat(heartbeat.counter)
        first_step(executor)
        store = open_spill(plan.spill, _block_bytes(executor), ledger, notices)
        engine = _new_engine(prepared, executor, tokenizer, defaults, store, ledger, index_charge)
        _warm_up(prepared, engine, executor, tokenizer)
        measured = measured_memory(
            executor,
            runtime_bytes,
            tree=tree,
            checkpoint_files=files,
            tier_bytes=0 if store is None else store.host_capacity_bytes,
        )
    except BaseException:
        if store is not None:
            store.close()
        executor.close()
        raise
    return OpenedEngine(
        engine=engine,
        executor=executor,
        tokenizer=tokenizer,
        directory=directory,
        plan=plan,
        receipt=receipt_table(plan, measured),
        default_sampling=default_sampling(defaults),
        description=_description(engine, executor, prepared, measured, notices),
        ledger=ledger,
        memory=_memory(prepared, engine, executor, ledger, tree, runtime_bytes),
    )


def _warm_up(prepared: Prepared, engine: Engine, executor: NativeExecutor, tokenizer: Tokenizer) -> None:
    if prepared.options.server:
        context_tokens = prepared.plan.context_tokens
        rehearse(executor, tokenizer, context_tokens=context_tokens, max_running=engine.max_running)
    preload(executor, engine.pool, engine.scheduler.prefix, prepared.options.pinned_prompts, engine.limits)


def _memory(
    prepared: Prepared, engine: Engine, executor: NativeExecutor, ledger: Ledger, tree: int | None, runtime_bytes: int
) -> EngineMemory:
    options, plan = prepared.options, prepared.plan
    # What a library's caller took before the load is its own business; what it takes later competes with the model.
    planned_bytes = plan.breakdown.runtime_bytes - block_index_bytes(plan.num_blocks)
    caller_bytes = 0 if options.server else max(0, runtime_bytes - planned_bytes)
    return EngineMemory(
        ladder=_ladder(engine, executor, plan, ledger),
        probe=PressureProbe(tree, caller_bytes=caller_bytes),
        accounts=lambda: engine_accounts(engine, executor, ledger, plan, server=options.server),
        watchdog=options.watchdog,
        files=ReportFiles(report_directory(options.watchdog.directory, os.environ), "engine"),
        # The HTTP process follows its allocations at the same time, and has no ledger of the whole.
        trace=AllocationTrace(ledger, num_processes=2 if options.server else 1),
    )


def _description(
    engine: Engine, executor: Executor, prepared: Prepared, measured: MeasuredMemory, notices: Notices
) -> EngineDescription:
    plan = prepared.plan
    return EngineDescription(
        model=plan.model,
        fingerprint=executor.determinism(),
        context_tokens=engine.limits.context_tokens,
        vocab_size=prepared.spec.vocab_size,
        max_running_requests=engine.max_running,
        max_queued_requests=engine.max_queued,
        plan_table=f"{plan_table(plan)}\n\n{receipt_table(plan, measured)}",
        receipt_json=json.dumps(receipt_as_dict(plan, measured), indent=2),
        notices=notices.taken(),
    )


def _open_ledger(plan: Plan) -> tuple[Ledger, Reservation]:
    """Return the budget with what no part of the load charges itself, and the charge of the pool's index."""
    ledger = Ledger(plan.budget_bytes)
    index_bytes = block_index_bytes(plan.num_blocks)
    ledger.reserve("runtime", plan.breakdown.runtime_bytes - index_bytes)
    index_charge = ledger.reserve("block index", index_bytes)
    ledger.reserve("request history", HISTORY_BYTES)
    # History and sessions are a part of what requests take, and so of the headroom.
    ledger.reserve("session index", SESSION_INDEX_BYTES)
    ledger.reserve("headroom", plan.breakdown.headroom_bytes - HISTORY_BYTES - SESSION_INDEX_BYTES)
    return ledger, index_charge


def _block_bytes(executor: Executor) -> int:
    return sum(group.block_bytes for group in executor.layout().groups)


def _ladder(engine: Engine, executor: Executor, plan: Plan, ledger: Ledger) -> Ladder:
    loaded = LoadedBytes(
        budget_bytes=plan.budget_bytes,
        fixed_bytes=plan.breakdown.total_bytes - plan.breakdown.kv_bytes,
        block_bytes=_block_bytes(executor),
    )
    return Ladder(engine, loaded, ledger)


def _new_engine(
    prepared: Prepared,
    executor: NativeExecutor,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    spill_store: SpillStore | None,
    ledger: Ledger,
    index_charge: Reservation,
) -> Engine:
    options, plan = prepared.options, prepared.plan
    eos_token_ids = defaults.eos_token_ids
    compiler = GrammarCompiler(tokenizer, vocab_size=prepared.spec.vocab_size, eos_token_ids=eos_token_ids)
    return Engine(
        executor,
        tokenizer,
        eos_token_ids=eos_token_ids,
        context_tokens=plan.context_tokens,
        max_running=options.max_running,
        max_queued=options.max_queued,
        resident_bytes=_resident_bytes,
        request_space_bytes=request_space(plan.breakdown.headroom_bytes).engine_bytes,
        spill_store=spill_store,
        index_charge=index_charge,
        grammars=Grammars(compiler, ledger),
        speculation=options.speculation,
        sessions=options.sessions,
        scheduling=options.scheduling,
        step_cost=predict_step_cost(plan, prepared.spec),
    )


def _generation_defaults(prepared: Prepared, directory: Path, notices: Notices) -> GenerationDefaults:
    """Read what the checkpoint says of generating, and tell of what has no effect here."""
    defaults = read_generation_defaults(directory, prepared.config)
    _check_eos(defaults.eos_token_ids, prepared.spec)
    if defaults.not_honoured:
        names = ", ".join(defaults.not_honoured)
        message = f"generation_config.json sets {names}, which has no effect here"
        notices.add(NoticeCode.GENERATION_CONFIG_IGNORED, message)
    return defaults


def _load(
    prepared: Prepared, directory: Path, ledger: Ledger, notices: Notices, progress: ProgressCallback | None
) -> tuple[NativeExecutor, tuple[Path, ...]]:
    """Load, and return the checkpoint's files beside the executor."""
    setting = prepared.options.cache
    with packed_cache(prepared.plan, setting, notices) as cache, Checkpoint.open(directory) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(prepared.spec, prepared.config, shapes)
        executor = load_model(
            checkpoint,
            prepared.spec,
            weights,
            prepared.plan,
            progress=progress,
            cache=cache,
            ledger=ledger,
            most_kv_bytes=prepared.machine.memory.limit_bytes,
        )
        return executor, tuple(checkpoint.files)


def default_sampling(defaults: GenerationDefaults) -> SamplingParams:
    """Return the sampling that a checkpoint's authors chose; what they left open has this package's defaults."""
    base = SamplingParams()
    return replace(
        base,
        temperature=base.temperature if defaults.temperature is None else defaults.temperature,
        top_p=base.top_p if defaults.top_p is None else defaults.top_p,
        top_k=base.top_k if defaults.top_k is None else defaults.top_k,
        min_p=base.min_p if defaults.min_p is None else defaults.min_p,
        repetition_penalty=(
            base.repetition_penalty if defaults.repetition_penalty is None else defaults.repetition_penalty
        ),
    )


def _check_supported(model: str, unsupported: tuple[str, ...]) -> None:
    if unsupported:
        raise UnsupportedModelError(
            f"{model} can be planned but not run yet: {'; '.join(unsupported)}", features=unsupported
        )


def _check_eos(eos_token_ids: tuple[int, ...], spec: ArchSpec) -> None:
    wrong = [token for token in eos_token_ids if token >= spec.vocab_size]
    if wrong:
        raise ModelError(f"eos_token_id names token {wrong[0]}, but the vocabulary has {spec.vocab_size} entries")


def _resident_bytes() -> int:
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
