"""What this machine makes a load do differently than it was asked, known before a byte is loaded."""

from __future__ import annotations

from openautoglm.executor.load import ISA_VARIABLE, chosen_instruction_set
from openautoglm.native import _core
from openautoglm.spec.formats import AttentionArithmetic, NumberFormat
from openautoglm.spec.machine import MachineSpec
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.spec.plan import Plan

_BF16_SETS = ("avx512bf16", "amx")
_SCALAR_SET = "scalar"


def note_downgrades(notices: Notices, machine: MachineSpec, plan: Plan, *, max_running: int | None) -> None:
    """Tell of each; raise `DowngradeError` if `notices` is strict, and `ConfigError` for a bad OPENAUTOGLM_ISA.

    `max_running` is what the user asked for, if anything.
    """
    if machine.gpus:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in machine.gpus))
        notices.add(
            NoticeCode.ACCELERATOR_UNUSED,
            f"{names} is here, but this version computes on the processor: set CUDA_VISIBLE_DEVICES to nothing to "
            "leave it out on purpose",
        )
    _note_kernels(notices, machine, plan)
    if machine.memory.transparent_huge_pages == "never":
        notices.add(
            NoticeCode.HUGE_PAGES_OFF,
            "/sys/kernel/mm/transparent_hugepage/enabled says never, so weights and caches lie in small pages and "
            "steps are slower: write madvise to it",
        )
    if max_running is not None and max_running > plan.max_step_rows:
        notices.add(
            NoticeCode.MAX_RUNNING_LOWERED,
            f"--max-running {max_running} is more than the {plan.max_step_rows} rows of the plan's step: that many run "
            "at once; plan with a larger --concurrency",
        )


def _note_kernels(notices: Notices, machine: MachineSpec, plan: Plan) -> None:
    asked, available = chosen_instruction_set(), _core.available_isas()
    used, best = asked or available[-1], machine.cpu.isas[-1]
    if not asked and used != best:
        notices.add(
            NoticeCode.INSTRUCTION_SET_LOWERED,
            f"the processor has {best}, but only {used} can be used: the system does not save the wider registers, or "
            "this build lacks the kernels",
        )
    if not asked and used == _SCALAR_SET:
        notices.add(
            NoticeCode.SCALAR_KERNELS,
            f"no vector kernels fit this processor ({machine.cpu.name}): the portable ones run, many times slower; "
            f"{ISA_VARIABLE}={_SCALAR_SET} asks for them on purpose",
        )
    if used not in _BF16_SETS and _has_bf16_products(plan):
        notices.add(
            NoticeCode.BF16_WIDENED,
            f"{used} has no bf16 arithmetic: products of bf16 are computed in fp32, slower, and outputs differ by "
            "bytes from those of a processor that has it; --attention portable asks for fp32 in attention",
        )


def _has_bf16_products(plan: Plan) -> bool:
    formats = plan.formats
    attention = formats.kv is NumberFormat.BF16 and formats.attention is AttentionArithmetic.FASTEST
    return attention or NumberFormat.BF16 in (formats.layers.number, formats.head.number)
