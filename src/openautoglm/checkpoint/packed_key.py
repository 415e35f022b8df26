"""The key of a packed file: a hash of everything that its bytes depend on.

Two checkpoints with one key hold the same weights. Sizes and times alone would not do: images and archives set every
file's time to one constant, and fine-tunings of one model agree in headers and sizes. So a sample of the bytes is in
the key as well, and the names of the hub cache's files, which are hashes of their contents.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import openautoglm
from openautoglm.checkpoint.files import read_small_file
from openautoglm.checkpoint.hub_cache import CONFIG_FILE
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed_format import KEY_BYTES
from openautoglm.checkpoint.safetensors import SafetensorsFile
from openautoglm.spec.formats import PACKED_LAYOUT_VERSION
from openautoglm.spec.weights import WeightMap

MAX_CONFIG_BYTES = 16 << 20
NUM_SAMPLES = 64
SAMPLE_BYTES = 4096

# A file of the hub cache is a link to blobs/<hash of its content>.
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)


def packed_key(checkpoint: Checkpoint, weights: WeightMap, matrices: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Return the key of a load: KEY_BYTES bytes.

    `matrices` are what the weight store is made of: format, outputs, inputs and group of each, in its order. Reads
    headers (again, from memory) and NUM_SAMPLES pages of weights. Raises `CheckpointFormatError`.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)

    def add(*values: object) -> None:
        for value in values:
            data = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(len(data).to_bytes(8, "little") + data)

    add(openautoglm.__version__, PACKED_LAYOUT_VERSION, sys.byteorder, list(matrices))
    add(weights.matrices, weights.vectors)
    config = checkpoint.directory / CONFIG_FILE
    add(read_small_file(config, max_bytes=MAX_CONFIG_BYTES) if config.exists() else b"")
    num_samples = max(4, NUM_SAMPLES // len(checkpoint.files))
    for path, file in checkpoint.files.items():
        add(path.name, _identity(path, file), sorted(file.metadata.items()))
        add([(tensor.name, tensor.dtype, tensor.shape, tensor.begin, tensor.end) for tensor in file.tensors.values()])
        add(*file.sample(num_samples, SAMPLE_BYTES))
    return digest.digest()


def _identity(path: Path, file: SafetensorsFile) -> tuple[int, int | str]:
    """Return a file's size, and its content hash in the hub cache or else its time of change in nanoseconds."""
    status = file.status()
    blob = Path(os.path.realpath(path))
    if path.is_symlink() and blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        return status.st_size, blob.name
    return status.st_size, status.st_mtime_ns
