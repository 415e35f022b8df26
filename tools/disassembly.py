"""Functions of an object file as instructions, and their loops. For x86-64, from the listing that objdump prints."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = re.compile(r"^([0-9a-f]+) <(.*)>:$")
_LINE = re.compile(r"^ *([0-9a-f]+):\t([^#]*)")
_TARGET = re.compile(r"^([0-9a-f]+) <")
_PREFIXES = frozenset({"bnd", "lock", "notrack", "rep", "repz", "repnz"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One line of the listing; `target` is where a jump goes inside the same section."""

    address: int
    mnemonic: str
    operands: str
    target: int | None

    @property
    def jumps(self) -> bool:
        return self.mnemonic.startswith("j")

    @property
    def ends_flow(self) -> bool:
        """Whether what follows it in memory does not follow it in time."""
        return self.mnemonic.startswith(("jmp", "ret", "ud2", "hlt"))

    def __str__(self) -> str:
        return f"{self.address:x}: {self.mnemonic} {self.operands}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """Instructions of a loop in the order of the listing, those of the loops inside it too."""

    instructions: tuple[Instruction, ...]
    innermost: bool

    @property
    def address(self) -> int:
        return self.instructions[0].address


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    name: str  # demangled, without the project's namespace
    instructions: list[Instruction] = field(default_factory=list)

    def loops(self) -> list[Loop]:
        """Return every loop of the function, outer ones before those inside them."""
        blocks = _blocks(self.instructions)
        return [
            Loop(
                instructions=tuple(i for leader in sorted(members) for i in blocks[leader].instructions),
                innermost=innermost,
            )
            for members, innermost in _loops_among(blocks, frozenset(blocks))
        ]


def read_functions(path: Path) -> list[Function]:
    """Disassemble an object file or a library with symbols. Raises CalledProcessError, FileNotFoundError."""
    command = ["objdump", "--disassemble", "--demangle", "--wide", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions: list[Function] = []
    for line in listing.splitlines():
        if header := _HEADER.match(line):
            functions.append(Function(name=header[2].replace("oag::", "").replace("(anonymous namespace)::", "")))
        elif functions and (match := _LINE.match(line)):
            words = [word for word in match[2].split() if word not in _PREFIXES] or ["(bad)"]
            operands = " ".join(words[1:])
            target = _TARGET.match(operands)
            functions[-1].instructions.append(
                Instruction(
                    address=int(match[1], 16),
                    mnemonic=words[0],
                    operands=operands if target is None else target[1],
                    target=None if target is None else int(target[1], 16),
                )
            )
    return functions


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    instructions: list[Instruction]
    successors: list[int]  # leaders


def _blocks(instructions: list[Instruction]) -> dict[int, _Block]:
    """Cut a function into basic blocks, by the address of their first instruction."""
    addresses = {instruction.address for instruction in instructions}
    leaders = {instructions[0].address} if instructions else set()
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        if instruction.jumps and instruction.target in addresses:
            leaders.add(instruction.target)
        if following is not None and (instruction.jumps or instruction.ends_flow):
            leaders.add(following.address)
    blocks: dict[int, _Block] = {}
    for instruction in instructions:
        if instruction.address in leaders:
            leader = instruction.address
            blocks[leader] = _Block(instructions=[], successors=[])
        blocks[leader].instructions.append(instruction)
    for block, next_leader in zip(blocks.values(), [*list(blocks)[1:], None], strict=True):
        last = block.instructions[-1]
        if last.jumps and last.target in blocks:
            block.successors.append(last.target)
        if not last.ends_flow and next_leader is not None:
            block.successors.append(next_leader)
    return blocks


def _loops_among(blocks: dict[int, _Block], nodes: frozenset[int]) -> Iterator[tuple[frozenset[int], bool]]:
    """Loops are strongly connected blocks; those inside appear when the jumps back to the loop's entries are cut."""
    for members in _components(blocks, nodes):
        entered = {s for leader, block in blocks.items() if leader not in members for s in block.successors} & members
        # A loop that is entered nowhere begins the function.
        entries = entered or {min(members)}
        inside = list(_loops_among(_without_jumps_to(blocks, members, entries), members))
        yield members, not inside
        yield from inside


def _without_jumps_to(blocks: dict[int, _Block], members: frozenset[int], entries: set[int]) -> dict[int, _Block]:
    return {
        leader: _Block(
            instructions=blocks[leader].instructions,
            successors=[s for s in blocks[leader].successors if s in members and s not in entries],
        )
        for leader in members
    }


def _components(blocks: dict[int, _Block], nodes: frozenset[int]) -> Iterator[frozenset[int]]:
    """Yield the strongly connected components that hold a cycle (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    open_nodes: dict[int, None] = {}  # a stack that can be asked for membership
    for root in sorted(nodes):
        if root in number:
            continue
        work = [(root, iter(blocks[root].successors))]
        number[root] = lowest[root] = len(number)
        open_nodes[root] = None
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in number:
                    number[successor] = lowest[successor] = len(number)
                    open_nodes[successor] = None
                    work.append((successor, iter(blocks[successor].successors)))
                    break
                if successor in open_nodes:
                    lowest[node] = min(lowest[node], number[successor])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    members = {node}
                    while (last := open_nodes.popitem()[0]) != node:
                        members.add(last)
                    if len(members) > 1 or node in blocks[node].successors:
                        yield frozenset(members)
