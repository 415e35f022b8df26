"""Tracing of Python's allocations: what it names, and that it stays within what it was charged."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from openautoglm.errors import OutOfMemoryError
from openautoglm.memory.allocations import TRACE_BYTES, AllocationTrace
from openautoglm.memory.ledger import Ledger
from openautoglm.units import MIB


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    yield
    tracemalloc.stop()


def test_the_line_that_holds_most_comes_first() -> None:
    trace = AllocationTrace()
    assert trace.lines() is None
    trace.start()
    held = [bytes(1000) for _ in range(2000)]
    found = trace.lines()
    assert found is not None
    place, number, num_bytes = found.lines[0].place, found.lines[0].num_objects, found.lines[0].num_bytes
    assert place.startswith("tests/memory/test_allocations.py:")
    # One list is made beside them, on the same line.
    assert number in (2000, 2001)
    assert num_bytes >= 2000 * 1000
    assert found.traced_bytes >= num_bytes
    assert found.ended is None
    del held
    trace.stop()
    assert trace.lines() is None
    assert not tracemalloc.is_tracing()


def test_it_is_charged_while_it_may_run() -> None:
    ledger = Ledger(3 * TRACE_BYTES)
    trace = AllocationTrace(ledger, num_processes=2)
    trace.start()
    trace.start()
    assert ledger.in_use_bytes == 2 * TRACE_BYTES
    trace.stop()
    trace.stop()
    assert ledger.in_use_bytes == 0


def test_it_does_not_start_where_there_is_no_room() -> None:
    ledger = Ledger(TRACE_BYTES)
    trace = AllocationTrace(ledger, num_processes=2)
    with pytest.raises(OutOfMemoryError, match="allocation tracing"):
        trace.start()
    assert not trace.running
    assert not tracemalloc.is_tracing()
    assert ledger.in_use_bytes == 0


def test_it_ends_by_itself_before_it_takes_too_much_and_keeps_what_it_found(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(2 * TRACE_BYTES)
    trace = AllocationTrace(ledger, tracer_bytes=MIB)
    trace.start()
    held = [bytes(100) for _ in range(1000)]
    assert not trace.look()
    held += [bytes(100) for _ in range(60_000)]
    assert trace.look()
    assert not tracemalloc.is_tracing()
    assert not trace.running
    found = trace.lines()
    assert found is not None
    assert "1.00 MiB" in (found.ended or "")
    assert found.lines[0].num_objects > 50_000
    assert "tracing of allocations has ended" in caplog.text
    assert not trace.look()
    # Once more from the start: nothing of before is left.
    trace.start()
    again = trace.lines()
    assert again is not None
    assert again.ended is None
    assert again.traced_bytes < MIB
    assert ledger.in_use_bytes == TRACE_BYTES
    del held


FULL_TRACE = """
import tracemalloc
from pathlib import Path
from openautoglm.memory.allocations import AllocationTrace

def private_bytes():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

trace = AllocationTrace()
before = private_bytes()
trace.start()
held = [object() for _ in range(56_000)]
tracer_bytes = tracemalloc.get_tracemalloc_memory()
snapshot = tracemalloc.take_snapshot()
lines = snapshot.statistics("lineno")
print(tracer_bytes, len(snapshot.traces), private_bytes() - before)
"""


def test_a_trace_that_is_full_takes_no_more_than_it_was_charged() -> None:
    """What the tracer holds and a snapshot of it, by the growth of a process that has no memory to spare."""
    done = subprocess.run([sys.executable, "-c", FULL_TRACE], capture_output=True, text=True, timeout=60, check=True)
    tracer_bytes, num_traces, taken_bytes = map(int, done.stdout.split())
    assert num_traces >= 56_000
    assert 2.5 * MIB < tracer_bytes < 3.5 * MIB
    assert 8 * MIB < taken_bytes < TRACE_BYTES
