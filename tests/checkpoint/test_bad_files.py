"""Every way a checkpoint's files can be bad: how it is broken, the error, and what the message must say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.errors import (
    CheckpointError,
    CheckpointFormatError,
    MissingTensorError,
    UnexpectedTensorError,
    UnsupportedModelError,
)
from tests.checkpoint.files import SHARDS, entry, file_bytes, write_index, write_sharded, write_single

EIGHT = bytes(8)


@dataclass(frozen=True)
class Case:
    """`breaks` makes a bad checkpoint of an empty directory."""

    name: str
    breaks: Callable[[Path], object]
    error: type[CheckpointError]
    words: tuple[str, ...]


def single(name: str, header: object, data: bytes, *words: str) -> Case:
    """A bad header in model.safetensors; every such error names the file and says to get it again."""
    return Case(
        name,
        lambda directory: write_single(directory, header, data),
        CheckpointFormatError,
        ("model.safetensors", *words, "download"),
    )


def raw(name: str, content: bytes, *words: str) -> Case:
    return Case(
        name,
        lambda directory: (directory / "model.safetensors").write_bytes(content),
        CheckpointFormatError,
        ("model.safetensors", *words, "download"),
    )


def sharded(name: str, error: type[CheckpointError], words: tuple[str, ...], **weight_map: str | None) -> Case:
    return Case(name, lambda directory: write_sharded(directory, **weight_map), error, words)


def index(name: str, content: object, *words: str) -> Case:
    def breaks(directory: Path) -> None:
        write_sharded(directory)
        write_index(directory, content)

    return Case(name, breaks, CheckpointFormatError, ("index.json", *words))


def after(name: str, change: Callable[[Path], object], error: type[CheckpointError], *words: str) -> Case:
    """A good sharded checkpoint, changed."""

    def breaks(directory: Path) -> None:
        write_sharded(directory)
        change(directory)

    return Case(name, breaks, error, words)


def _truncate(directory: Path) -> None:
    os.truncate(directory / SHARDS[1], (directory / SHARDS[1]).stat().st_size - 1)


def _duplicate(directory: Path) -> None:
    save_file({name: np.zeros(2, np.float32) for name in "bcd"}, directory / SHARDS[1])


def _replace_by_directory(directory: Path) -> None:
    (directory / SHARDS[0]).unlink()
    (directory / SHARDS[0]).mkdir()


def _replace_by_pipe(directory: Path) -> None:
    (directory / SHARDS[0]).unlink()
    os.mkfifo(directory / SHARDS[0])


def _replace_by_link(target: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / SHARDS[0]).unlink()
        (directory / SHARDS[0]).symlink_to(target)

    return change


def _add_single_file(directory: Path) -> None:
    write_single(directory, {"a": entry("F32", [2], 0, 8)}, EIGHT)


NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000
GOOD = entry("F32", [2], 0, 8)
CASES = (
    raw("empty file", b"", "0 bytes", "at least 8"),
    raw("shorter than the length field", b"1234567", "7 bytes"),
    raw("header of 1 GiB claimed", (1 << 30).to_bytes(8, "little") + b"{}", "header of 1073741824 bytes", "100000000"),
    raw("header of 2^64-1 claimed", b"\xff" * 8 + b"{}", "18446744073709551615"),
    raw("header longer than the file", (100).to_bytes(8, "little") + b"{}", "header of 100 bytes", "only 10"),
    raw("HTML page", b"<!DOCTYPE html><html>Not found</html>", "header of"),
    single("no JSON", b"{nonsense", b"", "not JSON"),
    single("no object", b"[1]", b"", "does not begin with '{'"),
    single("empty header", b"", b"", "does not begin with '{'"),
    single("not UTF-8", b'{"\xff\xfe": 1}', b"", "not UTF-8"),
    single("UTF-16", '{"a": 1}'.encode("utf-16"), b"", "does not begin with '{'"),
    single("deep nesting", NESTED, b"", "nested deeper"),
    single("nesting of four", {"a": {"dtype": [[[]]]}}, b"", "nested deeper"),
    single("NaN", b'{"a": NaN}', b"", "NaN is not JSON"),
    single("integer of 5,000 digits", b'{"a": ' + b"9" * 5000 + b"}", b"", "5000 digits"),
    single("tensor twice", b'{"a": 1, "a": 2}', b"", "'a' stands twice"),
    single("key twice", b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype' stands twice"),
    single("metadata no object", {"__metadata__": [], "a": GOOD}, EIGHT, "__metadata__ is a list"),
    single("metadata no strings", {"__metadata__": {"a": 1}}, b"", "__metadata__['a'] is a int"),
    single("entry no object", {"a": 5}, b"", "tensor 'a' is described by 'int'"),
    single("key missing", {"a": {"dtype": "F32", "shape": [2]}}, EIGHT, "described by ['dtype', 'shape']"),
    single("key too many", {"a": {**GOOD, "extra": 1}}, EIGHT, "extra"),
    single("unknown dtype", {"a": entry("F12", [2], 0, 8)}, EIGHT, "unknown dtype 'F12'", "BF16"),
    single("dtype no string", {"a": {**GOOD, "dtype": ["F32"]}}, EIGHT, "unknown dtype ['F32']"),
    single("shape no list", {"a": {**GOOD, "shape": 2}}, EIGHT, "shape is 2, a list of integers"),
    single("negative dimension", {"a": entry("F32", [-2], 0, 8)}, EIGHT, "shape is [-2]"),
    single("fractional dimension", {"a": entry("F32", [2.0], 0, 8)}, EIGHT, "shape is [2.0]"),
    single("boolean dimension", {"a": entry("F32", [2, True], 0, 8)}, EIGHT, "shape is [2, True]"),
    single("nine dimensions", {"a": entry("F32", [1] * 8 + [2], 0, 8)}, EIGHT, "9 dimensions"),
    single("product past 2^64", {"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, EIGHT, "does not match its 8 bytes"),
    single("product wraps to 0", {"a": entry("U8", [1 << 32, 1 << 32], 0, 0)}, b"", "does not match its 0 bytes"),
    single("shape larger than data", {"a": entry("F32", [3], 0, 8)}, EIGHT, "shape [3] does not match its 8 bytes"),
    single("half a byte", {"a": entry("F4", [3], 0, 2)}, b"12", "does not match its 2 bytes"),
    single("offsets no pair", {"a": {**GOOD, "data_offsets": [0]}}, EIGHT, "data_offsets [0]"),
    single("offsets no integers", {"a": entry("F32", [2], "0", 8)}, EIGHT, "data_offsets is ['0', 8]"),
    single("negative offset", {"a": entry("F32", [2], -8, 0)}, EIGHT, "data_offsets is [-8, 0]"),
    single("end before begin", {"a": entry("F32", [2], 8, 0)}, EIGHT, "begin <= end"),
    single("past the end", {"a": entry("F32", [4], 0, 16)}, EIGHT, "data_offsets [0, 16]", "<= 8"),
    single(
        "overlap",
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)},
        bytes(12),
        "tensor 'b' overlaps the tensor before it",
    ),
    single("same bytes twice", {"a": GOOD, "b": GOOD}, EIGHT, "overlaps"),
    single(
        "hole",
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)},
        bytes(12),
        "tensor 'b' leaves a hole",
    ),
    single("hole at the start", {"a": entry("F32", [1], 4, 8)}, EIGHT, "leaves a hole"),
    single("bytes left over", {"a": GOOD}, bytes(9), "end at byte", "but the file has"),
    single("data missing", {"a": GOOD}, bytes(7), "data_offsets [0, 8]"),
    single("empty name", {"": GOOD}, EIGHT, "tensor '' has a name"),
    single("name of 2,000 characters", {"n" * 2000: GOOD}, EIGHT, "1024 printable"),
    single("control characters in a name", {"a\x1b[2J": GOOD}, EIGHT, "'a\\x1b[2J'"),
    single("lone surrogate in a name", b'{"\\ud800": {}}', b"", "\\ud800"),
    single("100,001 tensors", {str(i): entry("U8", [0], 0, 0) for i in range(100_001)}, b"", "100001 tensors"),
    single("a million values", b'{"a": [' + b"[]," * 3_300_000 + b"[]]}", b"", "values, at most"),
    Case("no such directory", lambda directory: directory.rmdir(), CheckpointError, ("is not a directory",)),
    Case("no weights", Path.touch, CheckpointError, ("has no weights", "model.safetensors")),
    Case(
        "only pickles",
        lambda directory: (directory / "pytorch_model.bin").write_bytes(b"x"),
        CheckpointFormatError,
        ("pytorch_model.bin", "never loaded", "safetensors"),
    ),
    index("index is no JSON", b"weights", "not JSON"),
    index("index is a list", [], "object was expected"),
    index("index without weight_map", {"metadata": {}}, "weight_map must be"),
    index("index with an empty weight_map", {"weight_map": {}}, "weight_map must be"),
    index("index names a number", {"weight_map": {"a": 1}}, "'a' is said to be in 1"),
    index("path traversal", {"weight_map": {"a": "../../x.safetensors"}}, "plain name", "../../x"),
    index("absolute path", {"weight_map": {"a": "/etc/x.safetensors"}}, "plain name"),
    index("path in a folder", {"weight_map": {"a": "x/y.safetensors"}}, "plain name"),
    index("path after a name", {"weight_map": {"a": "x.safetensors/../../y"}}, "plain name"),
    index("backslashes", {"weight_map": {"a": "..\\x.safetensors"}}, "plain name"),
    index("no safetensors file", {"weight_map": {"a": "pytorch_model.bin"}}, "plain name"),
    index("NUL in a name", {"weight_map": {"a": "x\0.safetensors"}}, "plain name"),
    sharded("indexed but not there", MissingTensorError, ("'e'", SHARDS[0], "not there"), e=SHARDS[0]),
    sharded("indexed in the wrong shard", MissingTensorError, ("'a'", SHARDS[1]), a=SHARDS[1]),
    sharded("there but not indexed", UnexpectedTensorError, ("'d'", "not in model.safetensors.index.json"), d=None),
    sharded("shard not there", CheckpointFormatError, ("absent.safetensors", "no such file"), e="absent.safetensors"),
    after("tensor in two shards", _duplicate, CheckpointFormatError, "'b' is also in", SHARDS[0]),
    after("truncated shard", _truncate, CheckpointFormatError, SHARDS[1], "download"),
    after("shard is a directory", _replace_by_directory, CheckpointFormatError, SHARDS[0], "is a directory"),
    after("shard is a pipe", _replace_by_pipe, CheckpointFormatError, SHARDS[0], "pipe, socket or device"),
    after("shard is a device", _replace_by_link("/dev/zero"), CheckpointFormatError, "pipe, socket or device"),
    after("dangling link", _replace_by_link("absent"), CheckpointFormatError, "symbolic link to a file that is not"),
    after("link to itself", _replace_by_link(SHARDS[0]), CheckpointFormatError, SHARDS[0], "cannot be opened"),
    after("link to a directory", _replace_by_link("."), CheckpointFormatError, "is a directory"),
    after("stale single file", _add_single_file, CheckpointFormatError, "stale"),
)


def _num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_files(tmp_path: Path, case: Case):
    case.breaks(tmp_path)
    num_open = _num_open_files()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert type(caught.value) is case.error
    message = str(caught.value)
    for word in case.words:
        assert word in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000
    assert _num_open_files() == num_open


def test_the_good_files_are_good(tmp_path: Path):
    """The table's own starting points load, so each case fails for its own reason."""
    write_sharded(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert sorted(checkpoint.tensors) == list("abcd")
        assert checkpoint.total_bytes == 96
    write_single(tmp_path, {"a": GOOD}, EIGHT)
    (tmp_path / "model.safetensors.index.json").unlink()
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.read_rows("a", 0, 2).tolist() == [0.0, 0.0]


def test_a_known_dtype_that_cannot_be_read_is_described_and_refused_on_reading(tmp_path: Path):
    write_single(tmp_path, {"a": entry("F8_E4M3", [2, 4], 0, 8)}, EIGHT)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors["a"].shape == (2, 4)
        with pytest.raises(UnsupportedModelError, match="'a' is stored as F8_E4M3, which cannot be read"):
            checkpoint.read_rows("a", 0, 1)
        with pytest.raises(MissingTensorError, match="no tensor 'absent'"):
            checkpoint.read_rows("absent", 0, 1)


@pytest.mark.parametrize("header_bytes", [1 << 30, 100_000_000])
def test_a_header_claim_allocates_nothing(tmp_path: Path, header_bytes: int, monkeypatch: pytest.MonkeyPatch):
    """1 GiB is over the cap; 100 MB are within it, but the file does not have them."""
    (tmp_path / "model.safetensors").write_bytes(header_bytes.to_bytes(8, "little") + b"{}")
    monkeypatch.setattr(os, "preadv", lambda *arguments: pytest.fail(f"read {arguments}"))
    with pytest.raises(CheckpointFormatError, match=str(header_bytes)):
        Checkpoint.open(tmp_path)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path):
    """snapshots/<commit>/model.safetensors is a link out of its directory; a link inside works as well."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "hash").write_bytes(file_bytes({"a": GOOD}, EIGHT))
    (snapshot / "model.safetensors").symlink_to("../../blobs/hash")
    with Checkpoint.open(snapshot) as checkpoint:
        assert checkpoint.read_rows("a", 0, 2).tolist() == [0.0, 0.0]
