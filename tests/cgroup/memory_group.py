"""A memory cgroup, v1 or v2, of an exact size, to run commands in."""

from __future__ import annotations

import errno
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

V1_ROOT = Path("/sys/fs/cgroup/memory")
V2_ROOT = Path("/sys/fs/cgroup")
_EMPTY_SECONDS = 5.0


class MemoryGroup:
    """A cgroup limited to `limit_bytes` with swap off; a context manager that removes it again."""

    def __init__(self, limit_bytes: int) -> None:
        self._v1 = (V1_ROOT / "memory.limit_in_bytes").exists()
        root = V1_ROOT if self._v1 else V2_ROOT
        self.path = root / f"openautoglm-test-{uuid.uuid4().hex[:12]}"
        self._limit_bytes = limit_bytes

    def __enter__(self) -> MemoryGroup:
        if not self._v1:
            (V2_ROOT / "cgroup.subtree_control").write_text("+memory")
        self.path.mkdir()
        if self._v1:
            self._write("memory.swappiness", 0)
            self._write("memory.limit_in_bytes", self._limit_bytes)
        else:
            self._write("memory.swap.max", 0)
            self._write("memory.max", self._limit_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        # What has just ended may be counted in for a moment.
        deadline = time.monotonic() + _EMPTY_SECONDS
        while True:
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def run(self, arguments: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        """Run a command inside the group from its first instruction on."""
        return subprocess.run(
            arguments, preexec_fn=self._entry(), capture_output=True, text=True, timeout=240, **kwargs
        )

    def start(self, arguments: list[str], **kwargs: object) -> subprocess.Popen[str]:
        """Start a command inside the group from its first instruction on."""
        return subprocess.Popen(arguments, preexec_fn=self._entry(), **kwargs)

    def limit(self, limit_bytes: int, *, seconds: float) -> int:
        """Change the hard limit; return how often the kernel refused it before (v1: EBUSY while usage is above it).

        Raises `TimeoutError` when the usage stays above it.
        """
        deadline, num_refused = time.monotonic() + seconds, 0
        while True:
            try:
                # v2 accepts any limit at once, and kills for it: there, the usage must be below it before.
                if self._v1 or self.used_bytes() <= limit_bytes:
                    self._write("memory.limit_in_bytes" if self._v1 else "memory.max", limit_bytes)
                    return num_refused
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            num_refused += 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.used_bytes()} bytes are in use, above {limit_bytes}, for {seconds:g} s")
            time.sleep(0.05)

    def used_bytes(self) -> int:
        """What is charged now (page cache counts)."""
        return int((self.path / ("memory.usage_in_bytes" if self._v1 else "memory.current")).read_text())

    def _entry(self) -> Callable[[], None]:
        procs = str(self.path / "cgroup.procs")

        def enter() -> None:
            file = os.open(procs, os.O_WRONLY)
            os.write(file, b"0")
            os.close(file)

        return enter

    def peak_bytes(self) -> int:
        """The highest charge seen (page cache counts)."""
        return int((self.path / ("memory.max_usage_in_bytes" if self._v1 else "memory.peak")).read_text())

    def num_kills(self) -> int:
        """Processes killed for memory in this group."""
        name = "memory.oom_control" if self._v1 else "memory.events"
        fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(fields["oom_kill"])

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))
