"""The audit log: one JSON line for each thing that happened, each sealed with the line before it.

    {"seq":7,"time":...,"event":"request",...,"mac":HMAC(key, mac of line 6, line 7 without its mac)}

An edit, a deletion or a new order breaks the chain. The end is held by a second file, FILE.head, which seals the number
and mac of the last line: without the key neither file can be made to fit a shorter log. What this cannot show is that
both files were put back to an earlier state together: keep copies of the head elsewhere for that.

What is written says who did what, when and how it ended, in numbers and names of this server's own; never a text.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec

from openautoglm.errors import ConfigError

_MAX_LINE_BYTES = 1 << 16
_FIRST_MAC = "0" * 64
_MAX_LOOKS = 5
_KEY_BYTES = 16
Value = str | int | float | bool | None | dict[str, int]


class WhenFull(StrEnum):
    """What happens to requests while the log cannot be written: they are refused, or go on and are counted."""

    BLOCK = "block"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """Where the log is and what seals it."""

    file: Path
    key: bytes = field(repr=False)
    when_full: WhenFull = WhenFull.BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong with a log; how many lines are sealed, and how many entries are known to be missing (`gaps`)."""

    num_lines: int
    gaps: int
    faults: tuple[str, ...]


def check_key(key: str | None) -> bytes:
    """Return a key as bytes; raise `ConfigError` for none, or one that could be guessed."""
    if not key or len(key.encode()) < _KEY_BYTES:
        raise ConfigError(
            f"the audit log needs a key of {_KEY_BYTES} bytes or more: set OPENAUTOGLM_AUDIT_KEY, such as to what "
            "openssl rand -hex 32 prints, and keep it elsewhere too"
        )
    return key.encode()


class AuditLog:
    """Appends to a log. Used from one thread at a time; several processes cannot share a file."""

    def __init__(self, options: AuditOptions) -> None:
        """Open the log and go on where it ends; raise `ConfigError` for one whose end does not fit its head or key.

        What a crash left of a last line that was never sealed is cut off, and the first new line says how much it was.
        """
        self._key, self._head_file = options.key, head_file(options.file)
        self.when_full = options.when_full
        self._num_missed = 0
        self._file = _open_alone(options.file)
        try:
            self._seq, self._mac, torn_bytes = self._take_over(options.file)
            self._file.truncate(self._size)
        except BaseException:
            self._file.close()
            raise
        # Whether a line that failed is still to be cut off.
        self._torn = False
        self.append("start", {"torn_bytes": torn_bytes} if torn_bytes else {})

    @property
    def num_missed(self) -> int:
        """Entries that could not be written and are not in the log's gap lines yet."""
        return self._num_missed

    def append(self, event: str, fields: Mapping[str, Value]) -> bool:
        """Write one line; return False, and count it, where that is not possible now.

        Where lines were missed before, one that says how many comes first.
        """
        try:
            if self._num_missed:
                self._write("gap", {"missed": self._num_missed})
                self._num_missed = 0
            self._write(event, fields)
        except OSError:
            self._num_missed += 1
            return False
        return True

    def close(self) -> None:
        """Write that the log ends here."""
        self.append("stop", {})
        self._file.close()

    def _write(self, event: str, fields: Mapping[str, Value]) -> None:
        entry = {"seq": self._seq, "time": round(time.time(), 3), "event": event, **fields}
        line, mac = _sealed(self._key, self._mac, entry)
        if self._torn:
            self._file.truncate(self._size)
        self._torn = True
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError("only a part of the line could be written")
            _write_head(self._head_file, self._key, self._seq, mac)
        except OSError:
            # Half a line, or one that the head does not know of, must not stay.
            self._file.truncate(self._size)
            self._torn = False
            raise
        self._torn = False
        self._size += len(line)
        self._seq, self._mac = self._seq + 1, mac

    def _take_over(self, file: Path) -> tuple[int, str, int]:
        """Return the next number, the last mac, and the bytes of a torn line behind it."""
        self._size = 0
        if file.stat().st_size == 0 and not self._head_file.exists():
            return 0, _FIRST_MAC, 0
        whole, _, torn = _last_lines(file).rpartition(b"\n")
        last = whole.rpartition(b"\n")[2]
        head = _read_head(self._head_file, self._key)
        entry = _entry(last)
        if (
            head is not None
            and entry is not None
            and _fault(entry, last + b"\n", self._key, head[0] + 1, head[1]) is None
        ):
            # A crash between the line and its head.
            head = head[0] + 1, str(entry["mac"])
        if head is None or entry is None or (entry.get("seq"), entry.get("mac")) != head:
            raise ConfigError(
                f"{file} does not end where its head {self._head_file} says, or the key is another one: look at it "
                "with openautoglm audit verify, and begin a new file"
            )
        self._size = file.stat().st_size - len(torn)
        return head[0] + 1, head[1], len(torn)


@contextmanager
def open_audit(options: AuditOptions | None) -> Iterator[AuditLog | None]:
    """Open a log for as long as a server runs; None for one that keeps none."""
    if options is None:
        yield None
        return
    audit = AuditLog(options)
    try:
        yield audit
    finally:
        audit.close()


def _open_alone(file: Path) -> BinaryIO:
    """Open a log for appending, this process alone; raise `ConfigError` if another one has it."""
    opened = open(file, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600))  # noqa: SIM115
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        opened.close()
        raise ConfigError(f"{file} is the audit log of a server that runs: give each server its own") from None
    return opened


def head_file(file: Path) -> Path:
    """Return where the end of a log is held."""
    return file.with_name(file.name + ".head")


def verify(file: Path, key: bytes) -> Verdict:
    """Look at every line of a log and at its head; nothing is changed. Memory does not grow with the log.

    A log that grew meanwhile is looked at again: its head may then count lines that had not been there.
    """
    for _ in range(_MAX_LOOKS):
        num_bytes = file.stat().st_size
        verdict = _verify(file, key)
        if not verdict.faults or file.stat().st_size == num_bytes:
            break
    return verdict


def _verify(file: Path, key: bytes) -> Verdict:
    faults: list[str] = []
    seq, mac, before, gaps, torn = 0, _FIRST_MAC, _FIRST_MAC, 0, False
    for number, line in enumerate(_lines(file), start=1):
        if not line.endswith(b"\n"):
            torn = True
            break
        entry = _entry(line)
        if entry is None:
            return Verdict(num_lines=seq, gaps=gaps, faults=(f"line {number} is no entry of an audit log",))
        fault = _fault(entry, line, key, seq, mac)
        if fault is not None:
            # Behind the first fault nothing can be trusted, in whatever way it is wrong.
            return Verdict(num_lines=seq, gaps=gaps, faults=(f"line {number}: {fault}",))
        missed = entry.get("missed") if entry.get("event") == "gap" else 0
        gaps += missed if isinstance(missed, int) else 0
        seq, mac, before = seq + 1, str(entry["mac"]), mac
    head = _read_head(head_file(file), key)
    if head is None:
        faults.append(f"the head {head_file(file)} is missing, damaged, or sealed with another key")
    elif head not in ((seq - 1, mac), (seq - 2, before)):
        # One line behind is what a crash between a line and its head leaves.
        faults.append(f"the log has {seq} lines and its head counts {head[0] + 1}: lines are missing at the end")
    if torn:
        faults.append(
            "the last line is not complete: a crash, or an edit; a server that starts cuts it off and says so"
        )
    return Verdict(num_lines=seq, gaps=gaps, faults=tuple(faults))


def _fault(entry: Mapping[str, object], line: bytes, key: bytes, seq: int, mac: str) -> str | None:
    if entry.get("seq") != seq:
        return f"it has the number {entry.get('seq')} where {seq} was expected: lines were deleted, added or reordered"
    fields = {name: value for name, value in entry.items() if name != "mac"}
    if _sealed(key, mac, fields)[0] != line:
        return "its seal does not fit: it was edited, or the key is another one"
    return None


def _sealed(key: bytes, before: str, entry: Mapping[str, object]) -> tuple[bytes, str]:
    """Return an entry as a line with its seal, and the seal."""
    data = msgspec.json.encode(entry)
    mac = hmac.digest(key, before.encode() + data, hashlib.sha256).hex()
    return data[:-1] + b',"mac":"' + mac.encode() + b'"}\n', mac


def _write_head(file: Path, key: bytes, seq: int, mac: str) -> None:
    """Write the head in one piece of one size: it is either the old one or the new one."""
    seal = hmac.digest(key, f"head {seq} {mac}".encode(), hashlib.sha256).hex()
    data = f"{seq:020} {mac} {seal}\n".encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.pwrite(descriptor, data, 0) != len(data):
            raise OSError("only a part of the head could be written")
    finally:
        os.close(descriptor)


def _read_head(file: Path, key: bytes) -> tuple[int, str] | None:
    """Return number and mac of the last line; None for a head that is missing or was not sealed with this key."""
    try:
        parts = file.read_bytes()[:1024].decode("ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    if len(parts) != 3 or not parts[0].isdecimal():
        return None
    seq, mac, seal = int(parts[0]), parts[1], parts[2]
    wanted = hmac.digest(key, f"head {seq} {mac}".encode(), hashlib.sha256).hex()
    return (seq, mac) if hmac.compare_digest(seal.encode(), wanted.encode()) else None


def _entry(line: bytes) -> dict[str, object] | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("mac"), str) else None


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while line := opened.readline(_MAX_LINE_BYTES):
            yield line


def _last_lines(file: Path) -> bytes:
    """Return the end of a file that holds its last line."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 2 * _MAX_LINE_BYTES))
        return opened.read()
