"""`ReportFiles`: a directory of reports, private, of bounded number and size; a full disk costs a report, nothing else.

$XDG_STATE_HOME/openautoglm/reports/      (or ~/.local/state/...; mode 0700)
    memory-20261124T231502Z-engine-4711-1.json      (mode 0600)
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from openautoglm.errors import ConfigError
from openautoglm.log import get_logger
from openautoglm.units import MIB

_log = get_logger(__name__)

MAX_FILES = 20
MAX_FILE_BYTES = MIB
# Longer than any write takes: what is older was left by a process that died.
PARTIAL_SECONDS = 60.0
_NAME = re.compile(r"memory-[0-9]{8}T[0-9]{6}Z-[a-z]+-[0-9]+-[0-9]+\.json", re.ASCII)
_PARTIAL_SUFFIX = ".partial"


def report_directory(wanted: str | None, environment: Mapping[str, str]) -> Path | None:
    """Return the directory of reports: `wanted`, else openautoglm/reports below $XDG_STATE_HOME, else ~/.local/state.

    None for a user without a home. A relative $XDG_STATE_HOME is ignored
    (https://specifications.freedesktop.org/basedir-spec).
    """
    if wanted is not None:
        return Path(wanted)
    base = environment.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "openautoglm" / "reports"
    try:
        return Path.home() / ".local" / "state" / "openautoglm" / "reports"
    except RuntimeError:
        return None


def check_directory(directory: str | None) -> None:
    """Raise `ConfigError` for a directory of reports that somebody named and that cannot be written.

    The default is made when the first report is written; that it cannot be costs no more than the file.
    """
    if directory is None:
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(directory, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"--log-dir {directory} cannot be made ({error.strerror or error}): name another") from error
    if not writable:
        raise ConfigError(f"--log-dir {directory} cannot be written: name another directory, or change its mode")


class ReportFiles:
    """Writes reports of one process; the directory may be shared by several. One thread at a time."""

    def __init__(
        self, directory: Path | None, process: str, *, max_files: int = MAX_FILES, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._directory = directory
        self._process = process
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._num_written = 0
        self.num_failed = 0

    def write(self, report: object) -> Path | None:
        """Write a report as JSON and remove the oldest beyond the bound.

        Returns None, with one warning, where that cannot be done: no directory, no space, no permission, too large.
        """
        try:
            file = self._write(msgspec.json.format(msgspec.json.encode(report), indent=1))
        except OSError as error:
            self.num_failed += 1
            _log.warning("a memory report could not be written (%s): see --log-dir", error.strerror or error)
            return None
        self._remove_oldest(file.parent)
        return file

    def _write(self, data: bytes) -> Path:
        if self._directory is None:
            raise OSError("there is no home directory, and no other one was named")
        if len(data) > self._max_file_bytes:
            raise OSError(f"it has {len(data)} bytes, {self._max_file_bytes} are allowed")
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._num_written += 1
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        file = self._directory / f"memory-{moment}-{self._process}-{os.getpid()}-{self._num_written}.json"
        partial = file.with_name(file.name + _PARTIAL_SUFFIX)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            partial.rename(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return file

    def _remove_oldest(self, directory: Path) -> None:
        """Keep the newest reports; files that are none of ours stay whatever they are."""
        try:
            names = sorted(entry.name for entry in directory.iterdir())
            reports = [name for name in names if _NAME.fullmatch(name)]
            dead = [name for name in names if _is_dead_partial(directory / name)]
            for name in (*reports[: -self._max_files], *dead):
                (directory / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old memory reports in %s could not be removed (%s)", directory, error.strerror or error)


def _is_dead_partial(file: Path) -> bool:
    if not file.name.endswith(_PARTIAL_SUFFIX) or not _NAME.fullmatch(file.name.removesuffix(_PARTIAL_SUFFIX)):
        return False
    try:
        return time.time() - file.stat(follow_symlinks=False).st_mtime > PARTIAL_SECONDS
    except FileNotFoundError:
        return False
