"""Memory of process trees: fixture trees of /proc, and real allocations of a known size."""

import mmap
import subprocess
import sys

from openautoglm.probe.process_memory import (
    measure_process_memory,
    parse_fields,
    parse_parent,
    peak_resident_bytes,
    process_tree,
)
from openautoglm.units import MIB

ROLLUP = (
    "00-ff ---p 00000000 00:00 0   [rollup]\nRss: {rss} kB\nPss: {pss} kB\n"
    "Pss_Anon: {anon} kB\nPss_File: {file} kB\nPss_Shmem: {shm} kB\n"
)


def fake_process(root, pid, parent, *, name="x", **files):
    directory = root / "proc" / str(pid)
    directory.mkdir(parents=True)
    (directory / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0\n")
    for file, text in files.items():
        (directory / file).write_text(text)


def test_a_tree_sums_its_processes(tmp_path):
    one = ROLLUP.format(rss=100, pss=60, anon=30, file=20, shm=10)
    fake_process(tmp_path, 10, 1, name="a) b (c", smaps_rollup=one)
    fake_process(tmp_path, 11, 10, smaps_rollup=one)
    fake_process(tmp_path, 12, 11, smaps_rollup=one)
    fake_process(tmp_path, 20, 1, smaps_rollup=one)
    (tmp_path / "proc" / "self").mkdir()
    assert process_tree(10, tmp_path) == (10, 11, 12)
    memory = measure_process_memory(10, root=tmp_path)
    assert memory.num_processes == 3
    assert memory.pss_bytes == 3 * 60 * 1024
    assert (memory.anonymous_bytes, memory.file_bytes, memory.shared_bytes) == (92160, 61440, 30720)
    assert memory.rss_bytes == 307200


def test_old_kernels_and_foreign_processes(tmp_path):
    fake_process(tmp_path, 10, 1, smaps_rollup="Rss: 100 kB\nPss: 60 kB\nAnonymous: 45 kB\n")
    status = "Name:\tx\nVmHWM:\t 900 kB\nRssAnon:\t 7 kB\nRssFile:\t 2 kB\nRssShmem:\t 1 kB\n"
    fake_process(tmp_path, 11, 10, smaps_rollup="", status=status)
    memory = measure_process_memory(10, root=tmp_path)
    assert memory.pss_bytes == (60 + 10) * 1024
    assert memory.anonymous_bytes == (45 + 7) * 1024
    assert memory.file_bytes == (15 + 2) * 1024
    assert peak_resident_bytes(11, root=tmp_path) == 900 * 1024
    assert peak_resident_bytes(99, root=tmp_path) == 0


def test_a_process_that_is_gone_counts_nothing(tmp_path):
    (tmp_path / "proc").mkdir()
    assert measure_process_memory(5, root=tmp_path).num_processes == 0


def test_parsers():
    assert parse_parent("7 (we ird) name) R 42 1 1") == 42
    assert parse_fields("Rss: 1 kB\nRss: 2 kB\nTHPeligible: 0\n") == {"Rss": 3072}


def test_touched_memory_is_measured_and_shared_memory_counts_once():
    before = measure_process_memory()
    with mmap.mmap(-1, 64 * MIB) as shared:
        for page in range(0, 64 * MIB, 4096):
            shared[page] = 1
        after = measure_process_memory()
        grown = after.pss_bytes - before.pss_bytes
        assert 63 * MIB <= grown <= 70 * MIB
        assert peak_resident_bytes() >= 64 * MIB


def test_children_are_part_of_the_tree():
    code = "import sys; data = bytearray(b'x') * (48 << 20); print('ready', flush=True); sys.stdin.read()"
    before = measure_process_memory()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        after = measure_process_memory()
        child.communicate()
    assert after.num_processes == before.num_processes + 1
    assert after.anonymous_bytes - before.anonymous_bytes >= 48 * MIB
