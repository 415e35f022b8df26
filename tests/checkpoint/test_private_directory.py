"""Directories of one process: gone with it, or with the next one to come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from openautoglm.checkpoint.private_directory import private_directory, remove_leftovers

PREFIX = "offload-"
# Makes a directory with a file in it, says so, and waits to be killed.
CHILD = """
import sys, time
from pathlib import Path
from openautoglm.checkpoint.private_directory import private_directory
with private_directory(Path(sys.argv[1]), "offload-") as path:
    (path / "weights").write_bytes(bytes(1000))
    print(path, flush=True)
    time.sleep(60)
"""


def start_child(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(parent)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_it_goes_with_its_block(tmp_path: Path) -> None:
    with private_directory(tmp_path / "made", PREFIX) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "file").write_text("x")
    assert list((tmp_path / "made").iterdir()) == []


def test_those_of_killed_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    living, kept = start_child(tmp_path)
    dying, left = start_child(tmp_path)
    try:
        with private_directory(tmp_path, PREFIX) as own:
            dying.kill()
            dying.communicate()
            assert (left / "weights").exists()
            others = [tmp_path / "offload-notes", tmp_path / "offload-abcdefgh", tmp_path / "0123.packed"]
            others[0].mkdir()  # not of our making
            others[1].symlink_to(others[0])
            others[2].write_text("x")
            remove_leftovers(tmp_path, PREFIX)
            assert set(tmp_path.iterdir()) == {kept, own, *others}
            assert (kept / "weights").exists()
    finally:
        living.kill()
        living.communicate()
    with private_directory(tmp_path, PREFIX):
        assert not kept.exists()
