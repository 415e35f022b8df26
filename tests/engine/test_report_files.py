"""Files of reports: private, few, whole or not there, and no trouble when they cannot be written."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from openautoglm.engine.report_files import ReportFiles, check_directory, report_directory
from openautoglm.errors import ConfigError


def test_a_report_is_private_and_whole(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "reports"
    file = ReportFiles(directory, "engine").write({"reason": "request", "bytes": 3})
    assert file is not None
    assert json.loads(file.read_text()) == {"reason": "request", "bytes": 3}
    assert file.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert list(directory.iterdir()) == [file]


def test_the_oldest_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("notes.txt", "memory-old.json", "memory-20200101T000000Z-engine-1-1.json~")]
    for file in others:
        file.write_text("mine")
    old = tmp_path / "memory-20200101T000000Z-engine-1-1.json"
    old.write_text("{}")
    dead = tmp_path / "memory-20200101T000000Z-engine-1-2.json.partial"
    dead.write_text("{")
    os.utime(dead, (0, 0))
    fresh = tmp_path / "memory-20200101T000000Z-http-1-3.json.partial"
    fresh.write_text("{")
    engine, http = ReportFiles(tmp_path, "engine", max_files=3), ReportFiles(tmp_path, "http", max_files=3)
    written = [files.write({"number": number}) for number in range(4) for files in (engine, http)]
    left = {file.name for file in tmp_path.iterdir()}
    assert {file.name for file in others} < left
    assert fresh.name in left
    assert old.name not in left
    assert dead.name not in left
    reports = sorted(file for file in tmp_path.glob("memory-*Z-*.json"))
    assert len(reports) == 3
    assert written[-1] in reports


def test_what_is_too_large_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ReportFiles(tmp_path, "engine", max_file_bytes=100)
    assert files.write({"text": "x" * 100}) is None
    assert files.num_failed == 1
    assert "could not be written" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_nowhere_to_write_costs_the_report_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for directory in (None, tmp_path / "file" / "below"):
        files = ReportFiles(directory, "engine")
        assert files.write({}) is None
        assert files.num_failed == 1


def test_a_disk_that_is_full_leaves_no_half_report(tmp_path: Path) -> None:
    """The system's limit on the size of files stands for a full disk: the write fails in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    files = ReportFiles(tmp_path, "engine")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        assert files.write({"text": "x" * 3000}) is None
        assert list(tmp_path.iterdir()) == []
        assert files.write({"text": "x" * 100}) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files.num_failed == 1


def test_a_link_in_the_way_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.gmtime()
    monkeypatch.setattr(time, "gmtime", lambda: moment)
    victim = tmp_path / "victim"
    victim.write_text("keep")
    directory = tmp_path / "reports"
    directory.mkdir()
    name = f"memory-{time.strftime('%Y%m%dT%H%M%SZ', moment)}-engine-{os.getpid()}-1.json.partial"
    (directory / name).symlink_to(victim)
    assert ReportFiles(directory, "engine").write({}) is None
    assert victim.read_text() == "keep"


def test_where_reports_go(tmp_path: Path) -> None:
    assert report_directory("/somewhere", {}) == Path("/somewhere")
    assert report_directory(None, {"XDG_STATE_HOME": "/state"}) == Path("/state/openautoglm/reports")
    home = Path.home() / ".local/state/openautoglm/reports"
    assert report_directory(None, {"XDG_STATE_HOME": "relative"}) == report_directory(None, {}) == home


def test_a_directory_that_was_named_is_checked_at_the_start(tmp_path: Path) -> None:
    check_directory(None)
    check_directory(str(tmp_path / "new" / "one"))
    assert (tmp_path / "new" / "one").is_dir()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="--log-dir"):
            check_directory(str(bad))
