"""Count the instructions of a step and compare them with the counts that are filed. Needs valgrind.

    tools/count_instructions.py --build build/guards            compare
    tools/count_instructions.py --build build/guards --update   file what is counted now

Two programs run under callgrind: steps of a small decoder with the AVX2 kernels (valgrind knows no AVX-512) and one
thread, and steps of the engine with an executor that answers at once. The same program gives the same count on a busy
machine and on an idle one. Counts hold for one compiler or interpreter and its libraries, and are filed by their names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "guards" / "instructions.json"
SCHEDULER = ROOT / "tests" / "guards" / "scheduler_steps.py"

Counts = dict[str, int]  # instructions a step, by the name of the step
Table = dict[str, dict[str, Counts]]  # program -> what compiled or interprets it -> counts

_IDENTITY = re.compile(r"^(?:compiler|interpreter): (.+)$", re.MULTILINE)
_NAME = re.compile(r"^desc: Trigger: Client Request: (.+)/(\d+)$", re.MULTILINE)
_SUMMARY = re.compile(r"^summary: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program that marks its steps, and by how much their counts may move before somebody looks."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    tolerance: float


def programs(build: Path, python: str) -> tuple[Program, ...]:
    marks = build / "libguard_marks.so"
    return (
        Program(
            name="decoder",
            command=(str(build / "guard_instructions"),),
            environment={"OPENAUTOGLM_ISA": "avx2"},
            tolerance=0.01,  # repeats to the instruction
        ),
        Program(
            name="scheduler",
            command=(python, str(SCHEDULER), str(marks)),
            environment={"PYTHONHASHSEED": "0"},
            tolerance=0.03,  # repeats to some 0.2 %: hashes of strings, addresses
        ),
    )


def read_dumps(directory: Path) -> Counts:
    """Return the counts of callgrind's dumps, of which each was made at the end of some named steps."""
    counts: Counts = {}
    for path in sorted(directory.iterdir()):
        text = path.read_text()
        name, summary = _NAME.search(text), _SUMMARY.search(text)
        if name is not None and summary is not None:
            counts[name[1]] = round(int(summary[1]) / int(name[2]))
    return dict(sorted(counts.items()))


def count(program: Program) -> tuple[str, Counts]:
    """Run a program under callgrind; return what compiled or interprets it, and the instructions of its steps."""
    with tempfile.TemporaryDirectory() as directory:
        valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
        outcome = subprocess.run(
            [*valgrind, f"--callgrind-out-file={directory}/dump", *program.command],
            env={**os.environ, **program.environment},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        counts = read_dumps(Path(directory))
    identity = _IDENTITY.search(outcome.stdout)
    if outcome.returncode or identity is None or not counts:
        sys.exit(f"{' '.join(program.command)} failed under valgrind with status {outcome.returncode}")
    return identity[1], counts


def compare(program: Program, counted: Counts, filed: Counts) -> list[str]:
    """Return a line for each step whose count is not what is filed."""
    problems = [f"{program.name}: {name} is filed but was not counted" for name in sorted(filed.keys() - counted)]
    for name, now in counted.items():
        if name not in filed:
            problems.append(f"{program.name}: {name} is not filed")
            continue
        before = filed[name]
        change = now / before - 1
        if abs(change) > program.tolerance:
            # Cheaper steps are news too: unless they are filed, the gain can be lost again unseen.
            problems.append(
                f"{program.name}: {name} takes {now} instructions, {abs(change):.1%} "
                f"{'more' if change > 0 else 'less'} than the {before} that are filed; "
                f"{program.tolerance:.0%} are allowed"
            )
    return problems


def show(program: Program, identity: str, counted: Counts, filed: Counts) -> None:
    print(f"{program.name}, {identity}: instructions a step")
    for name, now in counted.items():
        print(f"  {name:<28}{now:>12}", f"{now / filed[name] - 1:+8.2%}" if name in filed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="where OPENAUTOGLM_GUARDS was built")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the package (this one)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the filed counts")
    parser.add_argument("--update", action="store_true", help="file what is counted instead of comparing")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("missing valgrind: apt-get install valgrind")
    table: Table = json.loads(arguments.table.read_text()) if arguments.table.exists() else {}
    problems: list[str] = []
    for program in programs(arguments.build.resolve(), arguments.python):
        identity, counted = count(program)
        filed = table.setdefault(program.name, {})
        show(program, identity, counted, filed.get(identity, {}))
        if arguments.update:
            filed[identity] = counted
        elif identity in filed:
            problems += compare(program, counted, filed[identity])
        else:
            problems.append(f"{program.name}: nothing is filed for {identity}")
    if arguments.update:
        arguments.table.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
        return 0
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        print(
            f"if that is meant: python tools/count_instructions.py --build {arguments.build} --update, and say why "
            "in the commit",
            file=sys.stderr,
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
