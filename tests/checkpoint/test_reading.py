"""Reading tensors: the safetensors package is the oracle; slices stay bounded; pages are given back."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from openautoglm.checkpoint import safetensors as reader
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.errors import CheckpointFormatError
from openautoglm.units import MIB
from tests.checkpoint.files import SHARDS, entry, file_bytes, write_sharded, write_single

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def as_torch(rows: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_round_trip_with_the_safetensors_package(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    directory = tmp_path_factory.mktemp("checkpoint")
    shapes = data.draw(st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=6))
    tensors = {}
    for number, shape in enumerate(shapes):
        dtype = data.draw(st.sampled_from(sorted(DTYPES)))
        tensors[f"層.{number}"] = torch.randn(shape).to(DTYPES[dtype])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt", "note": "ünï"})
    with Checkpoint.open(directory) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
        for name, tensor in tensors.items():
            info = checkpoint.tensors[name]
            assert DTYPES[info.dtype] is tensor.dtype
            assert info.shape == tuple(tensor.shape)
            begin = data.draw(st.integers(0, info.num_rows))
            end = data.draw(st.integers(begin, info.num_rows))
            rows = as_torch(checkpoint.read_rows(name, begin, end), info.dtype)
            expected = tensor[begin:end] if tensor.ndim else tensor.reshape(1)[begin:end]
            assert rows.shape == expected.shape
            assert torch.equal(rows, expected)


def test_files_written_by_hand_are_the_safetensors_package_s_too(tmp_path: Path):
    """The tests' own writer speaks the format, so what it breaks is what it says."""
    data = np.arange(6, dtype=np.float32).tobytes()
    write_single(tmp_path, {"b": entry("F32", [2, 2], 0, 16), "a": entry("F32", [2], 16, 24)}, data)
    with safe_open(tmp_path / "model.safetensors", framework="np") as oracle, Checkpoint.open(tmp_path) as checkpoint:
        for name in ("a", "b"):
            assert np.array_equal(oracle.get_tensor(name), checkpoint.read_rows(name, 0, 2))


def test_sharded_reading(tmp_path: Path):
    write_sharded(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert {info.file.name for info in checkpoint.tensors.values()} == set(SHARDS)
        for name in "abcd":
            assert checkpoint.read_rows(name, 1, 2).tolist() == [[float(ord(name))] * 3]


@pytest.mark.parametrize("rows", [(-1, 1), (0, 3), (2, 1)])
def test_rows_that_are_not_there_are_a_caller_s_mistake(tmp_path: Path, rows: tuple[int, int]):
    write_sharded(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(ValueError, match="rows"):
        checkpoint.read_rows("a", *rows)


def sparse_checkpoint(directory: Path, num_rows: int, row_elements: int) -> None:
    """One F32 tensor whose data is a hole in the file: large to read, nothing on disk."""
    num_bytes = num_rows * row_elements * 4
    content = file_bytes({"a": entry("F32", [num_rows, row_elements], 0, num_bytes)})
    path = directory / "model.safetensors"
    path.write_bytes(content)
    os.truncate(path, len(content) + num_bytes)


def test_no_read_is_larger_than_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sparse_checkpoint(tmp_path, 150, MIB // 4)
    sizes: list[int] = []
    real = os.preadv

    def spy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(sum(len(buffer) for buffer in buffers))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.rows_per_slice("a") == 64
        sizes.clear()
        assert checkpoint.read_rows("a", 10, 150).nbytes == 140 * MIB
    assert sizes == [64 * MIB, 64 * MIB, 12 * MIB]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel may return fewer bytes than asked, as it does for a read that a signal interrupts."""
    write_sharded(tmp_path)
    real = os.preadv
    with Checkpoint.open(tmp_path) as checkpoint:
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:5]], offset))
        assert checkpoint.read_rows("b", 0, 2).tolist() == [[98.0] * 3] * 2


def test_a_file_truncated_after_opening_is_an_error_and_no_signal(tmp_path: Path):
    sparse_checkpoint(tmp_path, 150, MIB // 4)
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.read_rows("a", 0, 1)
        os.truncate(tmp_path / "model.safetensors", 10 * MIB)
        with pytest.raises(CheckpointFormatError, match="ended at byte 10485760 while it was read"):
            checkpoint.read_rows("a", 0, 150)


def test_an_error_of_the_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sharded(tmp_path)

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    with Checkpoint.open(tmp_path) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointFormatError, match=r"cannot be read \(Input/output error\); check the disk"):
            checkpoint.read_rows("a", 0, 1)


@pytest.fixture
def disk_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose files have a disk under them: in a tmpfs the page cache is the file itself."""
    candidates = [tmp_path, Path("/var/tmp"), Path(__file__).parent]
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]

    def kind(path: Path) -> str:
        holding = [mount for mount in mounts if path.resolve().is_relative_to(mount[0])]
        return max(holding, key=lambda mount: len(mount[0]))[1]

    chosen = next(path for path in candidates if kind(path) not in {"tmpfs", "ramfs"})
    directory = chosen / f"openautoglm-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def resident_bytes(path: Path) -> int:
    """Bytes of a file in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=3) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def on_disk(directory: Path) -> Path:
    """Two tensors of 8 MiB, written through to the disk; all pages are in the cache."""
    tensors = {name: torch.ones(256, 8192) for name in "ab"}
    path = directory / "model.safetensors"
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        file.read()
    return path


def test_pages_are_dropped_behind_the_reader(disk_directory: Path):
    path = on_disk(disk_directory)
    assert resident_bytes(path) >= 16 * MIB
    with Checkpoint.open(disk_directory) as checkpoint:
        checkpoint.read_rows("a", 0, 256)
        assert 8 * MIB <= resident_bytes(path) <= 8 * MIB + 64 * 1024
        checkpoint.read_rows("b", 0, 256)
    assert resident_bytes(path) <= 64 * 1024


def test_release_drops_a_tensor_that_was_not_read_here(disk_directory: Path):
    path = on_disk(disk_directory)
    with Checkpoint.open(disk_directory) as checkpoint:
        checkpoint.release("b")
        assert resident_bytes(path) <= 8 * MIB + 64 * 1024
        checkpoint.release("a")
    assert resident_bytes(path) <= 64 * 1024


def test_the_slice_is_what_the_issue_says():
    assert reader.SLICE_BYTES == 64 * MIB
