"""What a search may try for a goal, best first. What the user set has exactly one candidate.

The orders make plans monotone: a larger budget never gives a smaller context (tests/planner holds it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openautoglm.errors import ConfigError
from openautoglm.memory.kv import can_have_kv_format, check_kv_format
from openautoglm.planner.price import Choice
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import WEIGHT_GROUPS, ModelFormats, NumberFormat, WeightFormat
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.offload import OffloadMode

DEFAULT_CONTEXT_TOKENS = 8192
SMALLER_CONTEXTS = (6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 256)
DEFAULT_CONCURRENCY = 8
MAX_GROWN_CONCURRENCY = 32
CHUNKS_TOKENS = (512, 256, 128, 64)
ROOMY_ROWS = 32  # short sequences share the pool, so more may run than the concurrency at the whole context
USABLE_CONTEXT_TOKENS = 2048  # below it a better format is no gain: quality gives up the format first
GROUPED_FORMATS = (NumberFormat.INT4, NumberFormat.NF4)
# bf16 reads twice the bytes of int8 per token and gained nothing measurable; it is there for those who ask.
AUTOMATIC_FORMATS = (NumberFormat.INT8, NumberFormat.INT4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What is tried for an objective, best first: weights as (format, group), KV formats, contexts, sequences, steps.

    With `format_first` a better format is kept as long as USABLE_CONTEXT_TOKENS fit; otherwise context and sequences
    are kept and the format gives way. `roomy` steps have rows for more sequences than fit at the whole context.
    """

    weights: tuple[tuple[NumberFormat, int | None], ...] = ((NumberFormat.INT8, None), (NumberFormat.INT4, None))
    kv: tuple[NumberFormat, ...] = (NumberFormat.BF16, NumberFormat.INT8)
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    concurrencies: tuple[int, ...] = tuple(range(DEFAULT_CONCURRENCY, 0, -1))
    chunks_tokens: tuple[int, ...] = CHUNKS_TOKENS
    roomy: bool = True
    format_first: bool = False


STRATEGIES: dict[Objective | None, Strategy] = {
    None: Strategy(),
    # A token of a single sequence takes as long as its bytes take to read; a prefill's chunk holds up everybody else.
    Objective.LATENCY: Strategy(
        weights=((NumberFormat.INT4, None),),
        kv=(NumberFormat.INT8,),
        concurrencies=(4, 3, 2, 1),
        chunks_tokens=(128, 64),
        roomy=False,
    ),
    # Weights are read once a step for all of its rows: rows are what counts, and the cache is what they take.
    Objective.THROUGHPUT: Strategy(
        kv=(NumberFormat.INT8,),
        context_tokens=4096,
        concurrencies=tuple(range(64, 0, -1)),
    ),
    Objective.QUALITY: Strategy(
        weights=(
            (NumberFormat.BF16, None),
            (NumberFormat.INT8, None),
            (NumberFormat.INT4, 32),
            (NumberFormat.INT4, None),
        ),
        format_first=True,
    ),
    Objective.CONTEXT: Strategy(concurrencies=(1,)),
}


def check_goal(spec: ArchSpec, goal: Goal) -> None:
    """Raise `ConfigError` for a goal that no budget could meet."""
    for name, value in (
        ("memory", goal.memory_bytes),
        ("context", goal.context_tokens),
        ("concurrency", goal.concurrency),
        ("chunk", goal.chunk_tokens),
        ("threads", goal.num_threads),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if goal.pinned_blocks < 0:
        raise ConfigError(f"pinned_blocks must be at least 0, got {goal.pinned_blocks}")
    if goal.context_tokens is not None and goal.context_tokens > spec.max_positions:
        raise ConfigError(
            f"a context of {goal.context_tokens:,} tokens is beyond the {spec.max_positions:,} positions that this "
            f"model was made for: ask for {spec.max_positions:,} or less"
        )
    if goal.quant is not None:
        WeightFormat(number=goal.quant)  # refuses what is no format of weights
    if goal.kv is not None:
        check_kv_format(spec, goal.kv)
    if goal.group is not None and goal.group not in WEIGHT_GROUPS:
        raise ConfigError(f"a weight group of {goal.group} is not one of {', '.join(map(str, WEIGHT_GROUPS))}")
    if goal.group is not None and goal.quant not in GROUPED_FORMATS:
        chosen = "auto" if goal.quant is None else str(goal.quant)
        raise ConfigError(f"a weight group means nothing for quant {chosen}: add quant int4 or nf4, or drop the group")
    _check_placement(spec, goal)
    for name, value in (("spill_memory", goal.spill.memory_bytes), ("spill_disk", goal.spill.disk_bytes)):
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, got {value}")


def _check_placement(spec: ArchSpec, goal: Goal) -> None:
    """Raise `ConfigError` for a layer that the model has not, and for places on disk where none are allowed."""
    named = (*goal.placement.disk, *goal.placement.memory)
    if named and max(named) >= spec.num_layers:
        raise ConfigError(
            f"place names layer {max(named)}, but this model has the layers 0-{spec.num_layers - 1}: "
            f"name some of layers.0-{spec.num_layers - 1}"
        )
    if goal.placement.disk and goal.offload is OffloadMode.NONE:
        raise ConfigError("place puts layers on disk, and offload none forbids that: drop one of the two")


def formats(spec: ArchSpec, goal: Goal) -> tuple[ModelFormats, ...]:
    """Return the formats to try, best first: a smaller cache comes before smaller weights, which cost more quality."""
    strategy = STRATEGIES[goal.objective]
    weights = strategy.weights if goal.quant is None else ((goal.quant, goal.group),)
    found = [
        ModelFormats.for_quantisation(
            number, group=group, activations=goal.activations, attention=goal.attention, kv=kv
        )
        for number, group in weights
        for kv in _kv_formats(spec, goal, strategy, number)
    ]
    return tuple(dict.fromkeys(found))


def _kv_formats(spec: ArchSpec, goal: Goal, strategy: Strategy, weights: NumberFormat) -> list[NumberFormat | None]:
    if goal.kv is not None:
        return [goal.kv]
    if weights is NumberFormat.F32:  # reachable from the library only: who asks for it wants all of it
        return [None]
    possible: list[NumberFormat | None] = [kv for kv in strategy.kv if can_have_kv_format(spec, kv)]
    return possible or [None]


def targets(spec: ArchSpec, goal: Goal) -> Iterator[tuple[int, int]]:
    """Yield (context_tokens, concurrency) to try: fewer sequences first, then a smaller context."""
    strategy = STRATEGIES[goal.objective]
    concurrencies = [goal.concurrency] if goal.concurrency else list(strategy.concurrencies)
    first = goal.context_tokens or min(spec.max_positions, strategy.context_tokens)
    for concurrency in concurrencies:
        yield first, concurrency
    if goal.context_tokens is None:
        for context_tokens in SMALLER_CONTEXTS:
            if context_tokens < first:
                yield context_tokens, concurrencies[-1]


def widths(goal: Goal, context_tokens: int, concurrency: int) -> Iterator[tuple[int, int]]:
    """Yield (max_step_tokens, max_step_rows) to try, the fastest first; each row takes a token of the step at least."""
    if goal.chunk_tokens is not None:
        yield goal.chunk_tokens, min(goal.chunk_tokens, max(concurrency, ROOMY_ROWS))
        if concurrency < min(goal.chunk_tokens, ROOMY_ROWS):
            yield goal.chunk_tokens, concurrency
        return
    strategy, useful = STRATEGIES[goal.objective], concurrency * context_tokens
    if strategy.roomy:
        widest = min(strategy.chunks_tokens[0], useful)
        yield max(ROOMY_ROWS, concurrency, widest), max(ROOMY_ROWS, concurrency)
    for chunk in strategy.chunks_tokens:
        yield max(concurrency, min(chunk, useful)), concurrency


def choices(spec: ArchSpec, goal: Goal, num_threads: int) -> Iterator[Choice]:
    """Yield every choice to try, best first: defaults at the best format, smaller steps, a smaller format, less.

    Where the format comes first, all that leaves a usable context is tried with it before the next one.
    """
    if not STRATEGIES[goal.objective].format_first:
        for target in targets(spec, goal):
            for model_formats in formats(spec, goal):
                yield from _steps(goal, model_formats, target, num_threads)
        return
    usable = min(USABLE_CONTEXT_TOKENS, spec.max_positions)
    for is_usable in (True, False):
        for model_formats in formats(spec, goal):
            for target in targets(spec, goal):
                if (goal.context_tokens is not None or target[0] >= usable) is is_usable:
                    yield from _steps(goal, model_formats, target, num_threads)


def _steps(goal: Goal, model_formats: ModelFormats, target: tuple[int, int], num_threads: int) -> Iterator[Choice]:
    context_tokens, concurrency = target
    for max_step_tokens, max_step_rows in widths(goal, context_tokens, concurrency):
        yield Choice(
            formats=model_formats,
            context_tokens=context_tokens,
            concurrency=concurrency,
            max_step_tokens=max_step_tokens,
            max_step_rows=max_step_rows,
            num_threads=num_threads,
            disk_layers=goal.placement.disk,
            pinned_blocks=goal.pinned_blocks,
        )


def neat_context(context_tokens: int) -> int:
    """Round a context down to what people would have chosen; never below one token."""
    multiple = 1024 if context_tokens >= 8192 else 256 if context_tokens >= 1024 else 16
    return max(1, context_tokens // multiple * multiple if context_tokens >= 16 else context_tokens)
