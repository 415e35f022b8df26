"""Fail where a hot loop of the kernels keeps vectors in memory for want of registers. Needs objdump (binutils).

    tools/check_spills.py build/guards/CMakeFiles/kernels.dir/src/native/kernels_*.cpp.o
    tools/check_spills.py --table OBJECT...     every hot function that spills, beside what it may

A hot loop holds dot products or fused multiply-adds on whole ymm or zmm registers. A spill is such a register stored to
or read from a fixed place of the stack frame. Read through an index, or where the address of the place is taken, it is
an array that lives there and does not count; an array whose every index the compiler knows looks like a spill, and gets
a line in BUDGETS. Objects of a build for speed are meant: sanitizers and -O0 keep everything on the stack.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from disassembly import Function, Instruction, Loop, read_functions


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What functions whose name matches may do. The first line that fits a function is the one that holds.

    `innermost` is the most spills in one of its innermost hot loops, `nest` the most in all of its hot loops together;
    None asks nothing. Functions on no line may not spill in an innermost hot loop.
    """

    objects: str  # pattern of the object file's name
    function: str  # pattern of the demangled name, without namespaces of the project
    innermost: int = 0
    nest: int | None = None


# Figures of GCC 12.2. Lower them when a kernel gets better; a higher one needs a measurement.
BUDGETS = (
    # Attention over int8 caches, in sixteen registers: its prefetches and addresses take some of them.
    Budget(objects="avx2", function=r"\bsum_values<", innermost=8),
    Budget(objects="avx2", function=r"\bscore_blocks<", innermost=22),
    # The same holds for widened fp8, merged states and two rows of nibbles, in sixteen registers.
    Budget(objects="avx2", function=r"\bmultiply_packed_int4<2>", innermost=17),
    Budget(objects="avx2", function=r"\b(add_shared_values|score_keys)<Fp8Step>", innermost=11),
    Budget(objects="avx2", function=r"\battention_rows<FloatRows<Fp8Step>", innermost=12),
    Budget(objects="avx2", function=r"\battention_partials\(", innermost=5),
    Budget(objects="avx2", function=r"\bmerge_states\(", innermost=26),
    # Constants of the exponential in SwiGLU and in the softmax.
    Budget(objects="avx512", function=r"^gemm_int\(", innermost=6),
    Budget(objects="avx2", function=r"^gemm_int\(", innermost=8),
    Budget(objects="avx2", function=r"\b(sum_exp\(|softmax_row<)", innermost=2),
    # fp32 and widened bf16 by panels of three rows.
    Budget(objects="avx2", function=r"\bgemm_float<", innermost=12),
    Budget(objects="avx2", function=r"\battend_partition<", innermost=28),
)

_DOT = re.compile(r"^v(pdp|dpbf16|pmaddubsw|pmaddwd|fn?m(add|sub)\d*p)")
_VECTOR = re.compile(r"%[yz]mm\d")
_ADDRESS = re.compile(r"(?P<offset>-?0x[0-9a-f]+)?\(%(?P<base>rsp|rbp)(?P<index>,[^)]*)?\)")
# What reads less than a register and spreads it was never a register.
_NARROW = re.compile(r"^v(p?broadcast|pmov[sz]x|cvt(ph2ps|ps2pd|dq2pd))|\{1to")


@dataclass(frozen=True, slots=True)
class Finding:
    """A function that spills more than it may."""

    function: str
    what: str
    lines: tuple[Instruction, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.function}\n  {self.what}", *(f"    {line}" for line in self.lines)))


class Frame:
    """The stack frame of a function: which of its places are arrays."""

    def __init__(self, function: Function) -> None:
        # Without this move rbp is a register like any other.
        has_base = any(i.mnemonic == "mov" and i.operands == "%rsp,%rbp" for i in function.instructions)
        self._bases = {"rsp", "rbp"} if has_base else {"rsp"}
        self._arrays: set[tuple[str, int]] = set()
        for instruction in function.instructions:
            place = _ADDRESS.search(instruction.operands)
            if place and (place["index"] or instruction.mnemonic.startswith("lea")):
                self._arrays.add((place["base"], int(place["offset"] or "0", 16)))

    def spills(self, instruction: Instruction) -> bool:
        """Whether the instruction keeps or reads a whole vector in a fixed place of the frame."""
        place = _ADDRESS.search(instruction.operands)
        if place is None or place["index"] or place["base"] not in self._bases:
            return False
        vector = _VECTOR.search(instruction.operands)
        if vector is None or _NARROW.search(f"{instruction.mnemonic} {instruction.operands}"):
            return False
        begin = int(place["offset"] or "0", 16)
        end = begin + (64 if vector[0].startswith("%z") else 32)
        return not any(base == place["base"] and begin <= offset < end for base, offset in self._arrays)


def is_hot(loop: Loop) -> bool:
    return any(_DOT.match(i.mnemonic) and _VECTOR.search(i.operands) for i in loop.instructions)


def short_name(function: Function) -> str:
    return function.name if len(function.name) <= 100 else function.name[:97] + "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Spills:
    """What the hot loops of a function keep in its frame."""

    function: Function
    innermost: dict[int, tuple[Instruction, ...]]  # by the address of the loop
    nest: tuple[Instruction, ...]

    @property
    def most(self) -> int:
        """Spills of the worst innermost loop."""
        return max(map(len, self.innermost.values()), default=0)

    def check(self, budget: Budget) -> list[Finding]:
        name = short_name(self.function)
        findings = [
            Finding(
                name,
                f"innermost loop at {address:x}: {len(lines)} spills, {budget.innermost} allowed",
                lines,
            )
            for address, lines in self.innermost.items()
            if len(lines) > budget.innermost
        ]
        if budget.nest is not None and len(self.nest) > budget.nest:
            what = f"all hot loops: {len(self.nest)} spills, {budget.nest} allowed"
            findings.append(Finding(name, what, self.nest))
        return findings


def measure(function: Function) -> Spills | None:
    """Return the spills of a function's hot loops; None where it has no hot loop."""
    frame = Frame(function)
    hot = [loop for loop in function.loops() if is_hot(loop)]
    if not hot:
        return None
    found = [(loop, tuple(i for i in loop.instructions if frame.spills(i))) for loop in hot]
    return Spills(
        function=function,
        innermost={loop.address: lines for loop, lines in found if loop.innermost},
        nest=tuple({line.address: line for _, lines in found for line in lines}.values()),
    )


def budget_of(path: Path, function: Function, budgets: tuple[Budget, ...]) -> Budget:
    for budget in budgets:
        if re.search(budget.objects, path.name) and re.search(budget.function, function.name):
            return budget
    return Budget(objects="", function="")


def check_object(path: Path, budgets: tuple[Budget, ...], *, table: bool) -> list[str]:
    """Return what is wrong with an object file; print a line for each function that spills if a table is wanted."""
    measured = [spills for function in read_functions(path) if (spills := measure(function)) is not None]
    if not measured:
        return [f"{path}: no loop with dot products found; is it stripped, or built without optimisation?"]
    problems: list[str] = []
    used: set[Budget] = set()
    for spills in measured:
        budget = budget_of(path, spills.function, budgets)
        used.add(budget)
        if table and spills.nest:
            nest = "-" if budget.nest is None else budget.nest
            print(
                f"{path.name:<28}{spills.most:>4} of {budget.innermost:<4}{len(spills.nest):>4} of {nest:<4} "
                f"{short_name(spills.function)}"
            )
        problems += [f"{path}: {finding}" for finding in spills.check(budget)]
    problems += [
        f"{path}: no function with a hot loop fits {budget.function!r}: correct BUDGETS in {Path(__file__).name}"
        for budget in budgets
        if re.search(budget.objects, path.name) and budget not in used
    ]
    if not problems:
        num_loops = sum(len(spills.innermost) for spills in measured)
        print(f"{path.name}: {len(measured)} functions, {num_loops} innermost hot loops, all within their budgets")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--table", action="store_true", help="print every hot function that spills")
    parser.add_argument("--no-budgets", action="store_true", help="allow no spill in any innermost hot loop")
    arguments = parser.parse_args()
    budgets = () if arguments.no_budgets else BUDGETS
    problems = [problem for path in arguments.objects for problem in check_object(path, budgets, table=arguments.table)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
