"""tools/count_instructions.py: reads callgrind's dumps, and says when a count is not what is filed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What valgrind 3.19 writes, but for the lines of each function.
DUMP = """# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 22069
cmd:  guard_instructions
part: 1


desc: I1 cache: 
desc: Timerange: Basic block 0 - 182410
desc: Trigger: Client Request: {trigger}

positions: line
events: Ir
summary: {summary}


totals: {summary}
"""  # noqa: W291


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")


def test_dumps_are_read_by_their_names(tmp_path: Path) -> None:
    from count_instructions import read_dumps

    (tmp_path / "dump.1").write_text(DUMP.format(trigger="int8, 8 rows of 1 token/4", summary=4002))
    (tmp_path / "dump.2").write_text(DUMP.format(trigger="int4, 1 row of 1 token/10", summary=77))
    # The last dump is that of the end of the program, which nobody asked for.
    (tmp_path / "dump").write_text(
        DUMP.format(trigger="Program termination", summary=5).replace("Client Request: ", "")
    )
    assert read_dumps(tmp_path) == {"int4, 1 row of 1 token": 8, "int8, 8 rows of 1 token": 1000}


@pytest.mark.parametrize(
    ("counted", "problems"),
    [
        ({"a": 1000, "b": 500}, []),
        ({"a": 1029, "b": 486}, []),
        ({"a": 1031, "b": 500}, ["a takes 1031 instructions, 3.1% more than the 1000"]),
        ({"a": 1000, "b": 484}, ["b takes 484 instructions, 3.2% less than the 500"]),
        ({"a": 1000}, ["b is filed but was not counted"]),
        ({"a": 1000, "b": 500, "c": 1}, ["c is not filed"]),
    ],
)
def test_counts_that_moved_are_named(counted: dict[str, int], problems: list[str]) -> None:
    from count_instructions import Program, compare

    program = Program(name="decoder", command=(), environment={}, tolerance=0.03)
    found = compare(program, counted, {"a": 1000, "b": 500})
    assert len(found) == len(problems)
    for line, expected in zip(found, problems, strict=True):
        assert expected in line


def test_without_valgrind_it_fails(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, ROOT / "tools" / "count_instructions.py", "--build", tmp_path],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert "apt-get install valgrind" in outcome.stderr
