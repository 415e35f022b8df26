"""The watchdog on real memory: children that leak are found, children that only work are not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from openautoglm.engine.assemble import EngineOptions, open_engine, prepare
from openautoglm.engine.report_files import ReportFiles
from openautoglm.engine.watchdog import Accounts, Watchdog
from openautoglm.errors import EngineError, InvalidRequestError
from openautoglm.memory.allocations import TRACE_BYTES, AllocationTrace
from openautoglm.memory.ledger import Ledger
from openautoglm.spec.goal import Goal
from openautoglm.spec.spill import SpillTiers
from openautoglm.spec.watchdog import WatchdogOptions
from openautoglm.units import MIB

CHILD = Path(__file__).with_name("leaking_child.py")


def run(directory: Path, way: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(CHILD), str(directory), way, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_leak_is_reported_by_itself(tmp_path: Path) -> None:
    answer = run(tmp_path, "leak")
    first = answer["found"][0]
    assert first["reason"] == "growth"
    # Looks are 15 s apart: not before five minutes, and soon after.
    assert 20 <= first["look"] <= 26
    assert answer["counts"]["growth"] == len(answer["found"]) >= 2
    report = json.loads(Path(first["file"]).read_text())
    assert report["growth"]["rule"] == "growth"
    assert report["growth"]["grown_bytes"] >= 0.15 * report["ledger_bytes"]
    assert 10 * MIB < report["growth"]["bytes_per_minute"] < 14 * MIB
    assert report["memory"]["anonymous_bytes"] > 60 * MIB
    assert report["other_bytes"] == pytest.approx(report["memory"]["anonymous_bytes"], rel=0.1)
    assert report["mappings"]["heap"]["resident_bytes"] > 50 * MIB
    assert report["traced"] is None


def test_a_leak_that_is_traced_is_named(tmp_path: Path) -> None:
    answer = run(tmp_path, "leak", "100", "trace")
    report = json.loads(Path(answer["found"][0]["file"]).read_text())
    line = report["traced"]["lines"][0]
    assert line["place"].startswith("tests/engine/leaking_child.py:")
    assert "bytes(3000)" in CHILD.read_text().splitlines()[int(line["place"].rpartition(":")[2]) - 1]
    assert line["num_bytes"] > 50 * MIB


def test_a_native_leak_is_seen_in_the_heap(tmp_path: Path) -> None:
    answer = run(tmp_path, "leak_natively")
    report = json.loads(Path(answer["found"][0]["file"]).read_text())
    if report["heap"] is not None:
        assert report["heap"]["used_bytes"] > 50 * MIB
    assert report["mappings"]["heap"]["resident_bytes"] > 50 * MIB


def test_a_slow_leak_is_reported_for_its_slope_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "leak_slowly")["found"] == []
    found = run(tmp_path, "leak_slowly", "1.5")["found"]
    assert found
    assert {one["reason"] for one in found} == {"slope"}
    assert run(tmp_path, "leak_slowly", "4")["found"] == []


@pytest.mark.parametrize("way", ["idle", "resize_pool", "serve", "load_and_unload"])
def test_work_is_no_leak(tmp_path: Path, way: str) -> None:
    assert run(tmp_path, way, "3")["found"] == []
    assert list(tmp_path.iterdir()) == []


def accounts() -> Accounts:
    return Accounts(private_bytes=100, measured={"weights": 60}, charged={"requests": 50}, ledger_bytes=1000)


def test_a_report_on_request_adds_up(tmp_path: Path) -> None:
    dog = Watchdog("http", accounts, ReportFiles(tmp_path, "http"), WatchdogOptions(enabled=False))
    report = dog.report()
    assert (report.other_bytes, report.uncharged_bytes) == (40, -10)
    assert report.reason == "request"
    assert report.growth is None
    assert report.objects["builtins.function"] > 100
    assert report.file is not None
    written = json.loads(Path(report.file).read_text())
    assert written["file"] is None
    assert written["objects"] == report.objects
    assert len(Path(report.file).read_bytes()) < 1 << 16
    assert dog.num_reports == {"growth": 0, "slope": 0, "request": 1}


def test_tracing_begins_with_one_report_and_ends_with_another(tmp_path: Path) -> None:
    ledger = Ledger(4 * TRACE_BYTES)
    trace = AllocationTrace(ledger, num_processes=2)
    dog = Watchdog("engine", accounts, ReportFiles(tmp_path, "engine"), WatchdogOptions(enabled=False), trace=trace)
    assert dog.report().traced is None
    assert dog.report(trace=True).traced is not None
    assert ledger.in_use_bytes == 2 * TRACE_BYTES
    held = [str(number) * 40 for number in range(5000)]
    last = dog.report(trace=False)
    assert last.traced is not None
    assert last.traced.lines[0].place.startswith("tests/engine/test_watchdog.py")
    assert ledger.in_use_bytes == 0
    assert dog.report().traced is None
    del held
    dog.stop()


def test_tracing_without_room_is_refused_and_nothing_else_is(tmp_path: Path) -> None:
    trace = AllocationTrace(Ledger(1))
    dog = Watchdog("engine", accounts, ReportFiles(tmp_path, "engine"), WatchdogOptions(), trace=trace)
    with pytest.raises(InvalidRequestError, match="--memory"):
        dog.report(trace=True)
    assert dog.report().traced is None


def test_what_tracing_takes_is_no_growth(tmp_path: Path) -> None:
    """Tracing for ten minutes in a process of a small ledger, then none for ten."""
    trace, now = AllocationTrace(), 0.0

    def with_tracer() -> Accounts:
        tracer_bytes = TRACE_BYTES - MIB if trace.running else 0
        return Accounts(private_bytes=60 * MIB + tracer_bytes, measured={}, charged={}, ledger_bytes=80 * MIB)

    files = ReportFiles(tmp_path, "http")
    dog = Watchdog("http", with_tracer, files, WatchdogOptions(), trace=trace, clock=lambda: now)
    for look in range(100):
        if look == 30:
            trace.start()
        if look == 70:
            trace.stop()
        assert dog.look() is None
        now += 15.0


def test_its_thread_looks_and_ends(tmp_path: Path) -> None:
    looks: list[float] = []

    def counted() -> Accounts:
        looks.append(time.monotonic())
        if len(looks) == 1:
            raise EngineError("it is being started")
        return accounts()

    dog = Watchdog("engine", counted, ReportFiles(tmp_path, "engine"), WatchdogOptions(), look_seconds=0.05)
    dog.start()
    deadline = time.monotonic() + 30
    while len(looks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    dog.stop()
    assert len(looks) >= 3
    seen = len(looks)
    time.sleep(0.05)
    assert len(looks) == seen
    assert "openautoglm-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_one_that_is_off_has_no_thread(tmp_path: Path) -> None:
    dog = Watchdog("engine", accounts, ReportFiles(tmp_path, "engine"), WatchdogOptions(enabled=False))
    dog.start()
    assert "openautoglm-watchdog" not in {thread.name for thread in threading.enumerate()}
    dog.stop()


def test_a_model_accounts_for_its_pool_and_what_it_spills() -> None:
    """Both are filled by hand: what is left over must not move."""
    goal = Goal(context_tokens=512, concurrency=4, spill=SpillTiers(memory_bytes=32 * MIB))
    prepared = prepare(EngineOptions(model="demo", goal=goal, cache="off"))
    opened = open_engine(prepared)
    try:
        before = opened.memory.accounts()
        assert before.measured.keys() == {"weights", "KV pool", "workspace", "KV spill"}
        assert before.charged["requests"] == 0
        assert 0 < before.ledger_bytes == opened.ledger.in_use_bytes
        opened.executor.touch()
        pooled = opened.memory.accounts()
        block_bytes = sum(group.block_bytes for group in opened.executor.layout().groups)
        spill = opened.engine.spill
        assert spill is not None
        data = b"x" * block_bytes
        for number in range(500):
            assert spill.store.put(number.to_bytes(8, "big"), data)
        spilled = opened.memory.accounts()
        for key in range(500):
            spill.store.drop(key.to_bytes(8, "big"))
        dropped = opened.memory.accounts()
        assert pooled.measured["KV pool"] - before.measured["KV pool"] >= 2 * MIB
        assert spilled.measured["KV spill"] >= 500 * block_bytes
        assert spilled.private_bytes - pooled.private_bytes >= 18 * MIB
        assert dropped.measured["KV spill"] == 0
        assert pooled.private_bytes - dropped.private_bytes < MIB
        for later in (pooled, spilled, dropped):
            assert abs(later.other_bytes - before.other_bytes) < 2 * MIB
    finally:
        opened.engine.close()
