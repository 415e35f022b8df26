"""What a device of so much memory can hold: which formats fit, how far each goes, and what it costs in quality.

The device is described by its memory alone and need not be here; nothing in this version computes on one. Weights, KV
cache and a step's memory are priced as on the host, with one thread's scratch; interpreter and tokenizer stay on the
host. DEVICE_RESERVE_BYTES stand for the driver's context and libraries: an assumption, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from openautoglm.memory.kv import can_have_kv_format
from openautoglm.memory.runtime import runtime_bytes
from openautoglm.planner import candidates
from openautoglm.planner.limits import MAX_COUNTED_CONCURRENCY, largest_concurrency, largest_context
from openautoglm.planner.price import Choice, Pricer
from openautoglm.planner.quality_costs import MEASURED_ON, describe_cost, divergence_nats
from openautoglm.planner.tables import columns
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.units import GIB, MIB, format_bytes

USUAL_DEVICES_BYTES = (8 * GIB, 16 * GIB, 24 * GIB, 40 * GIB, 80 * GIB)
DEVICE_RESERVE_BYTES = 512 * MIB

_WEIGHTS = (NumberFormat.BF16, NumberFormat.INT8, NumberFormat.INT4, NumberFormat.NF4)
_CACHES = (NumberFormat.BF16, NumberFormat.INT8)
_STEP_TOKENS = 512
_NUM_THREADS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOption:
    """A pair of formats on a device.

    `least_bytes` is what one sequence of the least context takes. `max_context_tokens` holds for `concurrency`
    sequences, `max_concurrency` for sequences of `context_tokens`; both are 0 where nothing fits.
    """

    formats: ModelFormats
    weight_bytes: int
    least_bytes: int
    concurrency: int
    max_context_tokens: int
    context_tokens: int
    max_concurrency: int

    @property
    def fits(self) -> bool:
        """Whether one sequence of the least context fits."""
        return self.max_context_tokens > 0


def device_options(spec: ArchSpec, device_bytes: int, goal: Goal) -> tuple[DeviceOption, ...]:
    """Return every pair of formats for a device, the best quality first; the goal's own formats where they are set.

    Raises `ConfigError` for a goal that no device could meet.
    """
    candidates.check_goal(spec, goal)
    weights = _WEIGHTS if goal.quant is None else (goal.quant,)
    caches = [kv for kv in _CACHES if can_have_kv_format(spec, kv)] if goal.kv is None else [goal.kv]
    pricer = Pricer(spec)
    options = [
        _option(
            pricer,
            ModelFormats.for_quantisation(number, group=goal.group, activations=goal.activations, kv=kv),
            device_bytes,
            goal,
        )
        for number in weights
        for kv in caches
    ]
    return tuple(sorted(options, key=lambda option: divergence_nats(option.formats) or 0.0))


def _option(pricer: Pricer, formats: ModelFormats, device_bytes: int, goal: Goal) -> DeviceOption:
    spec = pricer.spec
    concurrency = goal.concurrency or 1
    context_tokens = goal.context_tokens or min(candidates.DEFAULT_CONTEXT_TOKENS, spec.max_positions)
    least = min(candidates.SMALLER_CONTEXTS[-1], spec.max_positions)
    choice = Choice(
        formats=formats,
        context_tokens=least,
        concurrency=concurrency,
        max_step_tokens=max(concurrency, goal.chunk_tokens or _STEP_TOKENS),
        max_step_rows=concurrency,
        num_threads=_NUM_THREADS,
    )
    # The host's processes are in the price and not on the device; the device's reserve is the other way round.
    beside_bytes = runtime_bytes(pricer.runtime, _NUM_THREADS) - DEVICE_RESERVE_BYTES
    budget_bytes = device_bytes + beside_bytes
    largest = largest_context(pricer, choice, budget_bytes)
    return DeviceOption(
        formats=formats,
        weight_bytes=pricer.breakdown(choice).weight_bytes,
        least_bytes=pricer.total_bytes(choice) - beside_bytes,
        concurrency=concurrency,
        max_context_tokens=largest if largest >= least else 0,
        context_tokens=context_tokens,
        max_concurrency=largest_concurrency(pricer, replace(choice, context_tokens=context_tokens), budget_bytes),
    )


def device_table(model: str, options_of: Mapping[int, Sequence[DeviceOption]]) -> str:
    """Return one table per device: formats, what fits, how far, and the cost in quality."""
    lines = [f"{model} on a device of so much memory (described, not here; {_reserve()})"]
    for device_bytes, options in options_of.items():
        first = options[0]
        rows: list[tuple[str, ...]] = [
            (
                "  weights",
                "KV",
                "size of weights",
                "needs",
                f"context of {first.concurrency}",
                f"sequences of {first.context_tokens:,}",
                "divergence",
            )
        ]
        rows += [_row(option) for option in options]
        lines += ["", format_bytes(device_bytes), *columns(rows)]
    lines += ["", f"divergence: KL to f32 on {MEASURED_ON}, of these formats; other models differ"]
    return "\n".join(lines)


def _row(option: DeviceOption) -> tuple[str, ...]:
    sequences = f"{option.max_concurrency:,}" + ("+" if option.max_concurrency == MAX_COUNTED_CONCURRENCY else "")
    return (
        f"  {option.formats.layers}",
        str(option.formats.kv),
        format_bytes(option.weight_bytes),
        format_bytes(option.least_bytes),
        f"{option.max_context_tokens:,} tokens" if option.fits else "does not fit",
        sequences if option.fits else "-",
        describe_cost(option.formats),
    )


def best_option(spec: ArchSpec, options: Sequence[DeviceOption]) -> DeviceOption | None:
    """Return the best quality that leaves a usable context, else the longest context of what fits, else None."""
    usable = min(candidates.USABLE_CONTEXT_TOKENS, spec.max_positions)
    for option in options:
        if option.max_context_tokens >= usable:
            return option
    fitting = [option for option in options if option.fits]
    return max(fitting, key=lambda option: option.max_context_tokens, default=None)


def models_table(specs: Mapping[str, ArchSpec], devices_bytes: Sequence[int], goal: Goal) -> str:
    """Return models x devices: in each cell the best formats with a usable context, and their largest context."""
    rows = [("model", *(format_bytes(device_bytes) for device_bytes in devices_bytes))]
    for name, spec in specs.items():
        cells = [best_option(spec, device_options(spec, device_bytes, goal)) for device_bytes in devices_bytes]
        rows.append((name, *(_cell(option) for option in cells)))
    return "\n".join(
        [
            *columns(rows),
            "",
            f"cells: weights / KV cache, largest context of {goal.concurrency or 1} sequence(s); -: no format fits",
            f"({_reserve()}; what this version can run says `plan MODEL`)",
        ]
    )


def _cell(option: DeviceOption | None) -> str:
    if option is None:
        return "-"
    return f"{option.formats.layers}/{option.formats.kv} {option.max_context_tokens:,}"


def options_as_list(options: Sequence[DeviceOption]) -> list[dict[str, object]]:
    """Return options as plain values."""
    return [
        {
            "weights": str(option.formats.layers),
            "kv": str(option.formats.kv),
            "fits": option.fits,
            "weight_bytes": option.weight_bytes,
            "least_bytes": option.least_bytes,
            "concurrency": option.concurrency,
            "max_context_tokens": option.max_context_tokens,
            "context_tokens": option.context_tokens,
            "max_concurrency": option.max_concurrency,
            "divergence_nats": divergence_nats(option.formats),
            "divergence_measured_on": MEASURED_ON,
        }
        for option in options
    ]


def _reserve() -> str:
    return f"{format_bytes(DEVICE_RESERVE_BYTES)} of it taken to be the driver's"
