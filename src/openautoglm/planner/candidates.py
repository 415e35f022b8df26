"""What a search may try for a goal, best first. What the user set has exactly one candidate.

The orders make plans monotone: a larger budget never gives a smaller context (tests/planner holds it).
"""

from __future__ import annotations

from collections.abc import Iterator

from openautoglm.errors import ConfigError
from openautoglm.memory.kv import check_kv_format
from openautoglm.planner.price import Choice
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import WEIGHT_GROUPS, ModelFormats, NumberFormat, WeightFormat
from openautoglm.spec.goal import Goal

DEFAULT_CONTEXT_TOKENS = 8192
SMALLER_CONTEXTS = (6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 256)
DEFAULT_CONCURRENCY = 8
MAX_GROWN_CONCURRENCY = 32
CHUNKS_TOKENS = (512, 256, 128, 64)
ROOMY_ROWS = 32  # short sequences share the pool, so more may run than the concurrency at the whole context
GROUPED_FORMATS = (NumberFormat.INT4, NumberFormat.NF4)
# bf16 reads twice the bytes of int8 per token and gained nothing measurable; it is there for those who ask.
AUTOMATIC_FORMATS = (NumberFormat.INT8, NumberFormat.INT4)


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


def formats(goal: Goal) -> tuple[ModelFormats, ...]:
    """Return the formats to try, best first."""
    quants = AUTOMATIC_FORMATS if goal.quant is None else (goal.quant,)
    return tuple(
        ModelFormats.for_quantisation(
            quant, group=goal.group, activations=goal.activations, attention=goal.attention, kv=goal.kv
        )
        for quant in quants
    )


def targets(spec: ArchSpec, goal: Goal) -> Iterator[tuple[int, int]]:
    """Yield (context_tokens, concurrency) to try: fewer sequences first, then a smaller context."""
    concurrencies = [goal.concurrency] if goal.concurrency else list(range(DEFAULT_CONCURRENCY, 0, -1))
    first = goal.context_tokens or min(spec.max_positions, DEFAULT_CONTEXT_TOKENS)
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
    useful = concurrency * context_tokens
    yield max(ROOMY_ROWS, concurrency, min(CHUNKS_TOKENS[0], useful)), max(ROOMY_ROWS, concurrency)
    for chunk in CHUNKS_TOKENS:
        yield max(concurrency, min(chunk, useful)), concurrency


def choices(spec: ArchSpec, goal: Goal, num_threads: int) -> Iterator[Choice]:
    """Yield every choice to try, best first: defaults at the best format, smaller steps, a smaller format, less."""
    for context_tokens, concurrency in targets(spec, goal):
        for model_formats in formats(goal):
            for max_step_tokens, max_step_rows in widths(goal, context_tokens, concurrency):
                yield Choice(
                    formats=model_formats,
                    context_tokens=context_tokens,
                    concurrency=concurrency,
                    max_step_tokens=max_step_tokens,
                    max_step_rows=max_step_rows,
                    num_threads=num_threads,
                )


def neat_context(context_tokens: int) -> int:
    """Round a context down to what people would have chosen; never below one token."""
    multiple = 1024 if context_tokens >= 8192 else 256 if context_tokens >= 1024 else 16
    return max(1, context_tokens // multiple * multiple if context_tokens >= 16 else context_tokens)
