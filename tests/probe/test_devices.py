"""Accelerators and disks."""

import json
import os
import stat
from pathlib import Path

import pytest

from openautoglm.checkpoint.hub_cache import demo_directory
from openautoglm.probe.disk import probe_disk
from openautoglm.probe.gpu import parse_gpu_list, probe_gpus
from openautoglm.probe.machine import probe_machine
from openautoglm.probe.tokenizer_file import probe_tokenizer
from openautoglm.spec.tokenizer import TokenizerSize
from openautoglm.units import MIB


def test_list_of_accelerators():
    text = "NVIDIA X, 24 GB edition, 24564, 24000\nNVIDIA Y, [N/A], 3\n\nNVIDIA Z, 8192, 0\n"
    gpus = parse_gpu_list(text)
    assert [(gpu.name, gpu.memory_bytes, gpu.free_bytes) for gpu in gpus] == [
        ("NVIDIA X, 24 GB edition", 24564 * MIB, 24000 * MIB),
        ("NVIDIA Z", 8192 * MIB, 0),
    ]


def program(directory: Path, body: str) -> str:
    file = directory / "fake-smi"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_a_driver_is_asked(tmp_path):
    gpus = probe_gpus(program(tmp_path, 'echo "Card, 100, 50"'))
    assert [(gpu.name, gpu.memory_bytes) for gpu in gpus] == [("Card", 100 * MIB)]


def test_an_absent_or_failing_driver_gives_none(tmp_path):
    assert probe_gpus("no-such-program-here") == ()
    assert probe_gpus(program(tmp_path, "echo broken >&2; exit 9")) == ()


def test_disk_of_a_path_that_does_not_exist_yet(tmp_path):
    disk = probe_disk(tmp_path / "a" / "b")
    filesystem = os.statvfs(tmp_path)
    assert disk.path == str(tmp_path / "a" / "b")
    assert disk.total_bytes == filesystem.f_frsize * filesystem.f_blocks
    assert 0 < disk.free_bytes <= disk.total_bytes


def test_the_machine_is_one_value():
    machine = probe_machine()
    assert machine.cpu.num_cores >= 1
    assert machine.cpu.isas[0] == "scalar"
    assert machine.memory.page_bytes == os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "merges",
    [["a b", 'c \\"', "d e"], [["a", "b"], ["c", '"'], ["d", "e"]], []],
    ids=["strings", "pairs", "none"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_merges_are_counted_without_parsing(tmp_path, merges, indent):
    file = tmp_path / "tokenizer.json"
    document = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, '"': 2}, "merges": merges}}
    file.write_text(json.dumps(document, indent=indent))
    assert probe_tokenizer(file, 3) == TokenizerSize(num_entries=3, num_merges=len(merges))


def test_a_tokenizer_without_merges(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    assert probe_tokenizer(file, 1).num_merges == 0
    file.write_text("")
    assert probe_tokenizer(file, 1).num_merges == 0


def test_the_count_agrees_with_a_real_tokenizer():
    file = demo_directory() / "tokenizer.json"
    counted = probe_tokenizer(file, 4096)
    assert abs(counted.num_merges - len(json.loads(file.read_text())["model"]["merges"])) <= 20
