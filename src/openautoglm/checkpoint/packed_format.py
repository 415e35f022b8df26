"""The bytes of a packed file: a header, the fp32 vectors, then the weight arena as it lies in memory.

    0             magic, version, key, sizes, digest of the weights, source        all little-endian
    1124          elements of each vector (u64), CRC-32 of all vectors, CRC-32 of each slice of the arena
    ..            blake2b of all bytes before it                                   <- header_bytes
    64 n          vectors, end to end
    4096 n        arena: the matrices, end to end                                  <- file_bytes

A slice belongs to one matrix, so that each matrix can be read, and checked, without the others.

A reader knows beforehand what it needs, so every field but the checksums is compared with an expected value; nothing is
allocated, or read into memory, on a header's word.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from openautoglm.errors import CheckpointFormatError
from openautoglm.units import MIB, round_up

MAGIC = b"OAGPACK\0"
FORMAT_VERSION = 2
KEY_BYTES = 32
WEIGHTS_DIGEST_BYTES = 16
SOURCE_BYTES = 1024
SLICE_BYTES = 16 * MIB
FLOAT_BYTES = 4

_FIXED = struct.Struct(f"<8sII{KEY_BYTES}sQQQIII{WEIGHTS_DIGEST_BYTES}s{SOURCE_BYTES}s")
_DIGEST_BYTES = 32
SOURCE_PROBE_BYTES = _FIXED.size
_VECTOR_ALIGNMENT = 64
_ARENA_ALIGNMENT = 4096


class PackedFileError(CheckpointFormatError):
    """A packed file is damaged, truncated or not what its name says; the model itself is unharmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSlice:
    """Bytes [begin, end) of the arena, which belong to one matrix and begin `offset` bytes behind its own start."""

    matrix: int
    begin: int
    end: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the slice."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """What a packed file must hold: known from checkpoint and plan before the file is opened.

    `vector_elements` are the fp32 elements of each vector and `matrix_bytes` the bytes of each matrix, in the weight
    map's order; each `slice_bytes` of a matrix have a checksum, and so has the shorter rest.
    """

    key: bytes
    vector_elements: tuple[int, ...]
    matrix_bytes: tuple[int, ...]
    slice_bytes: int = SLICE_BYTES

    @property
    def arena_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(self.matrix_bytes)

    @property
    def num_slices(self) -> int:
        """Slices of all matrices."""
        return sum(-(-num_bytes // self.slice_bytes) for num_bytes in self.matrix_bytes)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header, its digest included."""
        return _FIXED.size + 8 * len(self.vector_elements) + 4 + 4 * self.num_slices + _DIGEST_BYTES

    @property
    def vectors_begin(self) -> int:
        """Position of the first vector."""
        return round_up(self.header_bytes, _VECTOR_ALIGNMENT)

    @property
    def vectors_bytes(self) -> int:
        """Bytes of all vectors."""
        return sum(self.vector_elements) * FLOAT_BYTES

    @property
    def arena_begin(self) -> int:
        """Position of the arena."""
        return round_up(self.vectors_begin + self.vectors_bytes, _ARENA_ALIGNMENT)

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.arena_begin + self.arena_bytes

    def slices(self) -> tuple[PackedSlice, ...]:
        """Return every slice, in the arena's order."""
        found, matrix_begin = [], 0
        for matrix, num_bytes in enumerate(self.matrix_bytes):
            for offset in range(0, num_bytes, self.slice_bytes):
                end = matrix_begin + min(offset + self.slice_bytes, num_bytes)
                found.append(PackedSlice(matrix=matrix, begin=matrix_begin + offset, end=end, offset=offset))
            matrix_begin += num_bytes
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedHeader:
    """What only the file knows. `source` is the checkpoint's directory at the time of writing, empty if unknown."""

    weights_digest: bytes
    source: str
    vectors_checksum: int
    slice_checksums: tuple[int, ...]


def encode_header(layout: PackedLayout, header: PackedHeader) -> bytes:
    """Return the header's bytes; a source too long for its field is left out."""
    source = header.source.encode("utf-8", "surrogateescape")
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT_VERSION,
        layout.header_bytes,
        layout.key,
        layout.file_bytes,
        layout.arena_begin,
        layout.arena_bytes,
        layout.slice_bytes,
        layout.num_slices,
        len(layout.vector_elements),
        header.weights_digest,
        source if len(source) <= SOURCE_BYTES else b"",
    )
    elements = struct.pack(f"<{len(layout.vector_elements)}Q", *layout.vector_elements)
    checksums = struct.pack(f"<{1 + layout.num_slices}I", header.vectors_checksum, *header.slice_checksums)
    body = fixed + elements + checksums
    return body + _digest(body)


def parse_header(data: bytes, layout: PackedLayout, *, file_bytes: int) -> PackedHeader:
    """Return what a hostile header says, after comparing all that `layout` knows; raise `PackedFileError`.

    `data` are the first `layout.header_bytes` bytes (or fewer, of a file that is too short) of a file of `file_bytes`.
    """
    _expect("bytes of the file", file_bytes, layout.file_bytes)
    _expect("bytes of the header", len(data), layout.header_bytes)
    if not hmac.compare_digest(_digest(data[:-_DIGEST_BYTES]), data[-_DIGEST_BYTES:]):
        raise PackedFileError("the header does not match its checksum")
    magic, version, header_bytes, key, *numbers, weights_digest, source = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise PackedFileError("it does not begin as a packed file does")
    _expect("format version", version, FORMAT_VERSION)
    _expect("claimed bytes of the header", header_bytes, layout.header_bytes)
    if key != layout.key:
        raise PackedFileError("it belongs to another checkpoint or other formats")
    wanted = (
        layout.file_bytes,
        layout.arena_begin,
        layout.arena_bytes,
        layout.slice_bytes,
        layout.num_slices,
        len(layout.vector_elements),
    )
    names = ("bytes of the file", "arena's position", "bytes of the arena", "bytes of a slice", "slices", "vectors")
    for name, number, expected in zip(names, numbers, wanted, strict=True):
        _expect(f"claimed {name}", number, expected)
    elements = struct.unpack_from(f"<{len(layout.vector_elements)}Q", data, _FIXED.size)
    if elements != layout.vector_elements:
        raise PackedFileError("its vectors have other sizes than the model's")
    checksums = struct.unpack_from(f"<{1 + layout.num_slices}I", data, _FIXED.size + 8 * len(elements))
    return PackedHeader(
        weights_digest=weights_digest,
        source=_decode_source(source),
        vectors_checksum=checksums[0],
        slice_checksums=checksums[1:],
    )


def read_source(data: bytes) -> str:
    """Return the source of a file whose first bytes are `data`, whatever its layout; empty if there is none."""
    if len(data) < _FIXED.size:
        return ""
    magic, version, *_, source = _FIXED.unpack_from(data)
    return _decode_source(source) if magic == MAGIC and version == FORMAT_VERSION else ""


def _decode_source(source: bytes) -> str:
    return source.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise PackedFileError(f"{what}: {found} found, {expected} expected")
