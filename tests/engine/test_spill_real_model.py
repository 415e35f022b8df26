"""The embedded model with spilling: the same bytes as undisturbed runs, private files, and errors that end nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest, SpillStatus
from openautoglm.engine.spill_tiers import open_spill
from openautoglm.errors import ConfigError, DowngradeError
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.spill import spill_bytes
from openautoglm.probe.page_cache import cached_bytes
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.spec.pressure import Rung
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import MIB

SAMPLING = SamplingParams(max_tokens=100, temperature=0.9, top_p=0.95, seed=7, logprobs=2, ignore_eos=True, n=2)
PROMPTS = (
    "import os\nimport sys\n\n",
    "class Queue:\n    def __init__(self):\n",
    "The quick brown fox",
    "for index in range(10):\n    print(index)\n" * 2,
)
Answers = dict[tuple[str, int], list[object]]


@contextmanager
def opened(kv: NumberFormat, spill: SpillTiers, *, num_blocks: int) -> Iterator[OpenedEngine]:
    goal = Goal(
        memory_bytes=1 << 30,
        context_tokens=512,
        concurrency=8,
        quant=NumberFormat.INT8,
        kv=kv,
        num_threads=1,
        spill=spill,
    )
    prepared = prepare(EngineOptions(model="demo", goal=goal))
    opened = open_engine(replace(prepared, plan=replace(prepared.plan, num_blocks=num_blocks)))
    try:
        yield opened
    finally:
        opened.engine.close()


def answers(opened: OpenedEngine) -> Answers:
    """Run all prompts at once; return tokens and logprobs of each choice."""
    engine, found = opened.engine, Answers()
    for number, prompt in enumerate(PROMPTS):
        tokens = tuple(opened.tokenizer.encode(prompt))
        engine.add(GenerationRequest(request_id=f"r{number}", prompt_tokens=tokens, sampling=SAMPLING))
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length"), event
            found.setdefault((event.request_id, event.choice), []).extend([event.tokens, event.logprobs])
        engine.integrity_check()
    return found


def spill_status(opened: OpenedEngine) -> SpillStatus:
    status = opened.engine.status().spill
    assert status is not None
    return status


def open_file_below(directory: Path, process: int) -> Path:
    """Return the one file without a name that a process has open there."""
    descriptors = [path for path in list(Path(f"/proc/{process}/fd").iterdir()) if path.exists()]
    (found,) = [path for path in descriptors if str(path.readlink()).startswith(f"{directory}/")]
    return found


@pytest.fixture(scope="module", params=[NumberFormat.BF16, NumberFormat.INT8], ids=str)
def undisturbed(request: pytest.FixtureRequest) -> tuple[NumberFormat, Answers]:
    with opened(request.param, SpillTiers(), num_blocks=200) as engine:
        found = answers(engine)
        assert engine.engine.status().num_preemptions == 0
        assert engine.engine.status().spill is None
    return request.param, found


@pytest.mark.parametrize("tier", ["memory", "disk", "both"])
def test_spilled_choices_give_the_same_bytes(
    tier: str, undisturbed: tuple[NumberFormat, Answers], tmp_path: Path
) -> None:
    kv, expected = undisturbed
    spill = SpillTiers(
        memory_bytes={"memory": 4 * MIB, "disk": 0, "both": MIB // 4}[tier],
        disk_bytes=0 if tier == "memory" else 8 * MIB,
        directory=None if tier == "memory" else str(tmp_path),
    )
    with opened(kv, spill, num_blocks=16) as engine:
        assert answers(engine) == expected
        status, blocks = engine.engine.status(), spill_status(engine)
        assert status.num_preemptions == status.num_spills > 0
        assert blocks.restored_blocks > 10
        assert (blocks.damaged_blocks, blocks.num_errors) == (0, 0)
        store = engine.engine.spill.store if engine.engine.spill is not None else None
        assert store is not None
        kept = [tier for tier in (store._host, store._disk) if tier is not None and tier._slots.num_kept]
        assert not kept, "idle prefixes alone are left"
        assert "KV spill: buffers and index" in engine.ledger.usage()
        records = [engine.engine.explain(f"r{number}") for number in range(len(PROMPTS))]
        touched = [record for record in records if record is not None and record.restored_blocks]
        assert touched
        for record in touched:
            assert Rung.SPILL.label in record.rungs
            assert sum(choice.num_spills for choice in record.choices) > 0
            assert sum(choice.spilled_seconds for choice in record.choices) > 0
        assert sum(record.restored_blocks for record in touched) == blocks.restored_blocks
    with opened(kv, SpillTiers(), num_blocks=16) as engine:
        assert answers(engine) == expected
        assert engine.engine.status().num_spills == 0
        assert engine.engine.status().recomputed_tokens > status.recomputed_tokens


def test_damage_is_computed_again(undisturbed: tuple[NumberFormat, Answers], tmp_path: Path) -> None:
    """Every write to the disk is altered behind the store's back."""
    kv, expected = undisturbed
    with opened(kv, SpillTiers(disk_bytes=8 * MIB, directory=str(tmp_path)), num_blocks=16) as engine:
        path = open_file_below(tmp_path, os.getpid())
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == []
        with path.open("r+b", buffering=0) as file:
            step = engine.engine.step

            def altering_step() -> list[object]:
                for offset in range(100, path.stat().st_size, 3 * 4096):
                    os.pwrite(file.fileno(), b"\xa5\x5a\xff", offset)
                return list(step())

            engine.engine.step = altering_step  # type: ignore[method-assign, assignment]
            assert answers(engine) == expected
        blocks = spill_status(engine)
        assert blocks.damaged_blocks > 0
        assert engine.engine.status().recomputed_tokens > 0


def test_a_file_that_may_not_grow_turns_spilling_off(
    undisturbed: tuple[NumberFormat, Answers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The system itself refuses to write beyond a limit on the size of files."""
    kv, expected = undisturbed
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(kv, SpillTiers(disk_bytes=8 * MIB, directory=str(tmp_path)), num_blocks=16) as engine:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25 * 4096, limits[1]))
        try:
            with caplog.at_level(logging.WARNING):
                found = answers(engine)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert found == expected
        warnings = [record.getMessage() for record in caplog.records if "no longer spilled" in record.getMessage()]
        assert len(warnings) == 1
        assert "File too large" in warnings[0]
        blocks = spill_status(engine)
        assert blocks.num_errors == 1
        assert blocks.spilled_blocks > 0
        status = engine.engine.status()
        assert status.num_preemptions > status.num_spills > 0
        assert answers(engine) == expected
        assert spill_status(engine).num_errors == 1


def test_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from openautoglm.memory.spill_file import SpillFile
file = SpillFile(Path({str(tmp_path)!r}), 100_000)
file.write(50, bytes(100_000))
print("written", flush=True)
time.sleep(60)
"""
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        assert open_file_below(tmp_path, child.pid).stat().st_blocks * 512 >= 100_000
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert list(tmp_path.iterdir()) == []


def test_files_left_by_a_file_system_without_nameless_ones_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file has a name for a moment, in which a process may be killed."""
    from openautoglm.memory import spill_file

    stale = tmp_path / "openautoglm-spill-abc"
    stale.write_bytes(b"x")
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what kernels without it make of the flag: EISDIR
    file = spill_file.SpillFile(tmp_path, 5000)
    file.write(0, bytes(range(200)) * 25)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert file.read(0, 5000) == bytes(range(200)) * 25
    file.close()


def test_a_file_system_without_direct_io_works_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel that this runs on refuses `O_DIRECT` everywhere; so its refusal is made here, and the rest is real."""

    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, flags)

    real = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    tiers, notices = SpillTiers(disk_bytes=MIB, directory=str(tmp_path)), Notices()
    store = open_spill(tiers, 5000, Ledger(MIB), notices)
    assert store is not None
    assert [notice.code for notice in notices.taken()] == [NoticeCode.SPILL_BUFFERED]
    for number in range(100):
        assert store.put(bytes([number]), bytes([number]) * 5000)
    assert [store.get(bytes([number])) for number in range(100)] == [bytes([n]) * 5000 for n in range(100)]
    assert cached_bytes(open_file_below(tmp_path, os.getpid())) < 4 * 8192
    store.close()
    with pytest.raises(DowngradeError, match="no direct I/O"):
        open_spill(tiers, 5000, Ledger(MIB), Notices(strict=True))


def test_memory_is_no_disk(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    with pytest.raises(ConfigError, match="whose files are memory"):
        prepare(EngineOptions(model="demo", goal=Goal(spill=SpillTiers(disk_bytes=MIB, directory=str(shared / "a/b")))))
    for spill, message in (
        (SpillTiers(disk_bytes=1 << 60, directory=str(tmp_path)), "that are free"),
        (SpillTiers(directory=str(tmp_path)), "without --spill-disk"),
        (SpillTiers(disk_bytes=MIB, directory=str(tmp_path / "file/x")), "no directory"),
        (SpillTiers(memory_bytes=5000), "cannot hold one block"),
        (SpillTiers(disk_bytes=-1, directory=str(tmp_path)), "at least 0"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=message):
            prepare(EngineOptions(model="demo", goal=Goal(spill=spill)))


def test_the_plan_and_the_ledger_hold_the_tiers(tmp_path: Path) -> None:
    spill = SpillTiers(memory_bytes=6 * MIB, disk_bytes=32 * MIB, directory=str(tmp_path))
    goal = Goal(memory_bytes=300 * MIB, context_tokens=256, concurrency=2, quant=NumberFormat.INT8)
    with_tiers = prepare(EngineOptions(model="demo", goal=replace(goal, spill=spill))).plan
    without = prepare(EngineOptions(model="demo", goal=goal)).plan
    tier_bytes = with_tiers.breakdown.tier_bytes
    assert tier_bytes == with_tiers.breakdown.peak_bytes - without.breakdown.peak_bytes
    block_bytes = with_tiers.breakdown.kv_bytes // with_tiers.num_blocks
    assert tier_bytes == spill_bytes(spill, block_bytes)
    assert 6 * MIB <= tier_bytes <= 8 * MIB
    assert sum(part.num_bytes for part in with_tiers.breakdown.parts if part.component == "tiers") == tier_bytes
    begin = time.monotonic()
    opened = open_engine(prepare(EngineOptions(model="demo", goal=replace(goal, spill=spill))))
    try:
        store = opened.engine.spill
        assert store is not None
        for number in range(1000):
            store.store.put(number.to_bytes(32, "big"), bytes(block_bytes))
        usage = opened.ledger.usage()
        assert sum(size for name, size in usage.items() if name.startswith("KV spill")) <= tier_bytes
        assert 5 * MIB < usage["KV spill"] == spill_status(opened).memory_bytes <= 6 * MIB
        assert 30 * MIB < spill_status(opened).disk_bytes <= 32 * MIB
    finally:
        opened.engine.close()
    assert time.monotonic() - begin < 60
