"""`LifeWatch`: what counts as stalled and what does not, on a clock that is set, and on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openautoglm.engine.life import BUSY_SECONDS, SILENT_SECONDS, LifeWatch
from openautoglm.probe.process_activity import ProcessActivity, process_activity


@dataclass
class World:
    """A process as `LifeWatch` sees it; `tick` lets time pass between two looks."""

    now: float = 100.0
    beats: int = 0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    stopped: bool = False
    gone: bool = False
    silent_seconds: float = SILENT_SECONDS
    watch: LifeWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = LifeWatch(
            7,
            lambda: self.beats,
            silent_seconds=self.silent_seconds,
            clock=lambda: self.now,
            activity=lambda pid: self.activity() if pid == 7 else None,
        )

    def activity(self) -> ProcessActivity | None:
        if self.gone:
            return None
        return ProcessActivity(stopped=self.stopped, cpu_seconds=self.cpu_seconds, disk_bytes=self.disk_bytes)

    def tick(self, seconds: float, *, beats: int = 0, cpu_share: float = 0.0, disk_bytes: int = 0) -> str | None:
        self.now += seconds
        self.beats += beats
        self.cpu_seconds += cpu_share * seconds
        self.disk_bytes += disk_bytes
        return self.watch.look()

    def seconds_until_stalled(self, most: float, **each: float) -> float | None:
        begin = self.now
        while self.now - begin < most:
            if self.tick(0.2, **each) is not None:  # type: ignore[arg-type]
                return self.now - begin
        return None


def test_silence_is_found_within_ten_seconds_and_beats_end_it() -> None:
    world = World()
    assert world.seconds_until_stalled(600, beats=1) is None
    found = world.seconds_until_stalled(600)
    assert found is not None
    assert SILENT_SECONDS <= found < 10
    assert world.tick(0.2) == "gave no sign of life for 8 s"
    assert world.tick(0.2, beats=1) is None
    # The clock has begun again.
    again = world.seconds_until_stalled(600)
    assert again is not None
    assert again >= SILENT_SECONDS


@pytest.mark.parametrize(
    ("each", "stalled_after"),
    [
        # One layer of a large model on a starved machine, or one that comes from a slow disk.
        ({"cpu_share": 1.0}, BUSY_SECONDS),
        ({"cpu_share": 0.03}, BUSY_SECONDS),
        ({"disk_bytes": 4096}, BUSY_SECONDS),
        # Answering questions while the step hangs.
        ({"cpu_share": 0.005}, SILENT_SECONDS),
    ],
)
def test_what_computes_or_reads_has_longer(each: dict[str, float], stalled_after: float) -> None:
    found = World().seconds_until_stalled(600, **each)
    assert found is not None
    assert stalled_after <= found < stalled_after + 2


def test_a_stopped_one_is_found_as_fast_while_it_loads() -> None:
    loading = World(silent_seconds=120.0)
    assert loading.seconds_until_stalled(60) is None
    loading = World(silent_seconds=120.0, stopped=True)
    found = loading.seconds_until_stalled(600)
    assert found is not None
    assert found < 10
    assert loading.tick(0.2) == "is stopped and gave no sign of life for 8 s"


def test_a_watcher_that_was_away_blames_nobody() -> None:
    world = World()
    for _ in range(SILENT_SECONDS.__trunc__() - 1):
        assert world.tick(3600.0) is None
    assert world.tick(0.2, beats=1) is None


def test_one_that_is_gone_is_not_stalled() -> None:
    world = World(gone=True)
    assert world.seconds_until_stalled(60) is None


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    code = "import time\nwhile True: sum(range(1000)); time.sleep(0.0001)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        yield process
        process.kill()


def test_activity_of_a_real_process(child: subprocess.Popen[bytes]) -> None:
    def until(condition: object) -> None:
        deadline = time.monotonic() + 20
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def seen() -> ProcessActivity:
        activity = process_activity(child.pid)
        assert activity is not None
        return activity

    until(lambda: seen().cpu_seconds > 0.05)
    assert not seen().stopped
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: seen().stopped)
    before = seen()
    time.sleep(0.1)
    assert seen() == before
    os.kill(child.pid, signal.SIGCONT)
    until(lambda: seen().cpu_seconds > before.cpu_seconds)
    child.kill()
    child.wait()
    assert process_activity(child.pid) is None


def test_what_the_system_does_not_tell_is_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "proc" / "7"
    directory.mkdir(parents=True)
    fields = ["t", *["0"] * 10, "150", "50", *["0"] * 30]
    (directory / "stat").write_text(f"7 (a name) with )) {' '.join(fields)}\n")
    ticks = os.sysconf("SC_CLK_TCK")
    expected = ProcessActivity(stopped=True, cpu_seconds=200 / ticks, disk_bytes=0)
    assert process_activity(7, tmp_path) == expected
    (directory / "io").write_text("rchar: 9\nread_bytes: 4096\nwrite_bytes: 7\ncancelled_write_bytes: 0\n")
    found = process_activity(7, tmp_path)
    assert found is not None
    assert found.disk_bytes == 4096
