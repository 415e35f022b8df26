"""Mutated files: a typed error or a checkpoint that reads; never another exception, a hang, or much memory."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.errors import CheckpointError, UnsupportedModelError
from openautoglm.units import MIB

NUM_MUTANTS = 1000
# Fragments that mean something to a JSON parser or to the format.
FRAGMENTS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"-", b"0", b"9" * 30, b"1e400", b"1.5",
    b"null", b"true", b"NaN", b"Infinity", b'"F32"', b'"BF16"', b'"I64"', b'"F4"', b'"shape"', b'"data_offsets"',
    b'"__metadata__"', b"\x00", b"\xff", b"\xc3\x28", b"[" * 2000, b'{"a":' * 2000, b'"' + b"n" * 5000 + b'"',
    b"18446744073709551615", b"9223372036854775808", b"[0,0]", b"[1099511627776,1099511627776]",
)  # fmt: skip


def good_file() -> bytes:
    tensors = {f"model.layers.{i}.weight": np.full((4, 3), i, dtype=np.float32) for i in range(6)}
    return save(tensors, metadata={"format": "pt"})


VALUES = (
    0, 1, 2, -1, 3.0, True, None, "", "F32", "F16", "I8", "F4", "BOGUS", [], [0], [0, 0], [4, 3], [12], [3, 2, 2],
    [48, 0], [0, 48], [48, 96], [96, 144], [0, 1 << 62], [1 << 31, 1 << 33], [[4], 3], ["4", 3], {}, {"dtype": "F32"},
)  # fmt: skip


def mutant(generator: random.Random, good: bytes) -> bytes:
    """Change the header's text or its values, mostly with its length made true again, so that more is parsed."""
    length = int.from_bytes(good[:8], "little")
    header, data = good[8 : 8 + length], good[8 + length :]
    header = changed_values(generator, header) if generator.random() < 0.5 else changed_text(generator, header)
    claimed = len(header) if generator.random() < 0.9 else generator.choice((0, length, 1 << 62, len(header) + 1))
    cut = generator.choice((len(data),) * 8 + (len(data) - 1, 0))
    return claimed.to_bytes(8, "little") + header + data[:cut]


def changed_values(generator: random.Random, text: bytes) -> bytes:
    entries = json.loads(text)
    for _ in range(generator.choice((1, 1, 2, 3))):
        name = generator.choice(sorted(entries))
        key = generator.choice(("dtype", "shape", "data_offsets", "", "rename", "remove"))
        match key:
            case "":
                entries[name] = generator.choice(VALUES)
            case "rename":
                entries[generator.choice(("x", "", "\0", "__metadata__", "é"))] = entries.pop(name)
            case "remove":
                entries.pop(name)
            case _ if isinstance(entries[name], dict):
                entries[name] = {**entries[name], key: generator.choice(VALUES)}
        if not entries:
            break
    return json.dumps(entries).encode()


def changed_text(generator: random.Random, text: bytes) -> bytes:
    header = bytearray(text)
    for _ in range(generator.choice((1, 1, 2, 4))):
        place = generator.randrange(len(header) + 1)
        width = generator.choice((0, 1, 1, 2, 8, 40))
        match generator.randrange(4):
            case 0:
                header[place : place + width] = generator.choice(FRAGMENTS)
            case 1:
                header[place : place + width] = generator.randbytes(width)
            case 2:
                source = generator.randrange(len(header) + 1)
                header[place:place] = header[source : source + generator.choice((3, 20, 80))]
            case _:
                digits = [i for i, byte in enumerate(header) if byte in b"0123456789"]
                if digits:
                    header[generator.choice(digits)] = generator.choice(b"0123456789-")
    return bytes(header)


def outcome(directory: Path, content: bytes) -> str:
    """Open and read everything; return the error's text, or "read"."""
    (directory / "model.safetensors").write_bytes(content)
    try:
        with Checkpoint.open(directory) as checkpoint:
            for name, tensor in checkpoint.tensors.items():
                checkpoint.read_rows(name, 0, tensor.num_rows)
    except (CheckpointError, UnsupportedModelError) as error:
        return str(error)
    return "read"


def refused_by_the_oracle(content: bytes) -> str:
    """What the format's own implementation says against a file; "" if it reads it, or knows its dtype no better."""
    try:
        load(content)
    except SafetensorError as error:
        return str(error)
    except (KeyError, ValueError):
        return ""
    return ""


def test_mutated_files_give_typed_errors(tmp_path: Path):
    generator, good = random.Random(1), good_file()
    assert outcome(tmp_path, good) == "read"
    num_read, messages = 0, set()
    tracemalloc.start()
    for _ in range(NUM_MUTANTS):
        content = mutant(generator, good)
        started = time.monotonic()
        result = outcome(tmp_path, content)
        assert time.monotonic() - started < 2
        assert result.isascii()
        if result == "read":
            num_read += 1
            assert refused_by_the_oracle(content) == ""
        messages.add(result.split(":")[1][:20] if ":" in result else result)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50 * MIB
    # The mutations are neither all harmless nor all fatal, nor fatal for one reason.
    assert NUM_MUTANTS // 50 < num_read < NUM_MUTANTS // 2
    assert len(messages) > 20


def test_mutated_indexes_give_typed_errors(tmp_path: Path):
    generator = random.Random(7)
    (tmp_path / "model-1.safetensors").write_bytes(good_file())
    names = [f"model.layers.{i}.weight" for i in range(6)]
    good = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}).encode()
    index = tmp_path / "model.safetensors.index.json"
    outcomes = set()
    for _ in range(400):
        content = bytearray(good)
        for _ in range(generator.choice((1, 1, 3))):
            fragments = (*FRAGMENTS, b"../", b"/etc/x") if generator.random() < 0.5 else (b"x", b"1", b"_")
            place = generator.randrange(len(content))
            content[place : place + generator.choice((0, 1, 8))] = generator.choice(fragments)
        index.write_bytes(content)
        try:
            Checkpoint.open(tmp_path).close()
            outcomes.add("read")
        except CheckpointError as error:
            outcomes.add(type(error).__name__ if str(error).isascii() else str(error))
    assert outcomes <= {"read", "CheckpointFormatError", "MissingTensorError", "UnexpectedTensorError"}
    assert len(outcomes) > 2
