"""One safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.

Format: https://huggingface.co/docs/safetensors. The header is hostile until proved otherwise; nothing is allocated on
its word before it was checked against the file. Data is read with pread, never mapped: a file that somebody truncates
meanwhile gives an error instead of SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

from openautoglm.checkpoint.files import open_regular_file, quoted
from openautoglm.checkpoint.json_files import JsonLimits, parse_json_object
from openautoglm.checkpoint.tensors import DTYPE_BITS, TensorInfo
from openautoglm.errors import CheckpointFormatError
from openautoglm.units import MIB, format_bytes

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 1024
LENGTH_BYTES = 8
SLICE_BYTES = 64 * MIB

# A tensor's entry has 4 brackets, 4 commas and one comma per further dimension; the rest is room for metadata.
_HEADER_LIMITS = JsonLimits(max_bytes=MAX_HEADER_BYTES, max_depth=3, max_structure=32 * MAX_TENSORS)
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_METADATA_KEY = "__metadata__"


def _bad(source: object, what: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{source}: {what}; the file is damaged or no safetensors file: download it again")


def check_header_length(length_field: bytes, file_bytes: int, *, source: object) -> int:
    """Return the header's bytes from the file's first 8 bytes, checked against the cap and the file's size."""
    if len(length_field) < LENGTH_BYTES:
        raise _bad(source, f"the file has {file_bytes} bytes, at least {LENGTH_BYTES} expected")
    header_bytes = int.from_bytes(length_field, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise _bad(source, f"a header of {header_bytes} bytes is claimed, at most {MAX_HEADER_BYTES} are allowed")
    if header_bytes > file_bytes - LENGTH_BYTES:
        raise _bad(source, f"a header of {header_bytes} bytes is claimed, but the file has only {file_bytes} bytes")
    return header_bytes


def parse_header(header: bytes, file_bytes: int, *, file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check a header; return the tensors by name, in the order of their bytes, and the metadata.

    `header` is everything between the length field and the data of a file of `file_bytes`. Checked: UTF-8, JSON, depth,
    duplicate keys, names, number formats, dimensions, products, offsets, overlap, holes, and that the data ends where
    the file ends. Raises `CheckpointFormatError`. Peak bytes: about 10 times the header, see `JsonLimits`.
    """
    if not header.startswith(b"{"):
        raise _bad(file, "the header does not begin with '{'")
    entries = parse_json_object(header, source=f"{file} (header)", limits=_HEADER_LIMITS)
    metadata = _parse_metadata(entries.pop(_METADATA_KEY, {}), file)
    if len(entries) > MAX_TENSORS:
        raise _bad(file, f"{len(entries)} tensors, at most {MAX_TENSORS} are allowed")
    data_begin = LENGTH_BYTES + len(header)
    tensors = [_parse_entry(name, entry, data_begin, file_bytes, file) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_contiguous(tensors, data_begin, file_bytes, file)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _parse_metadata(value: object, file: Path) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if not isinstance(value, dict):
        raise _bad(file, f"{_METADATA_KEY} is a {type(value).__name__}, an object of strings expected")
    for key, text in value.items():
        if not isinstance(text, str):
            raise _bad(file, f"{_METADATA_KEY}[{quoted(key)}] is a {type(text).__name__}, a string expected")
        metadata[key] = text
    return metadata


def _parse_entry(name: str, entry: object, data_begin: int, file_bytes: int, file: Path) -> TensorInfo:
    tensor = f"tensor {quoted(name)}"
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise _bad(file, f"{tensor} has a name that is not 1 to {MAX_NAME_CHARACTERS} printable characters")
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise _bad(file, f"{tensor} is described by {quoted(found)}, expected {sorted(_ENTRY_KEYS)}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _bad(file, f"{tensor} has the unknown dtype {quoted(dtype)}, expected one of {', '.join(DTYPE_BITS)}")
    shape = _integers(entry["shape"], f"{tensor}: shape", file)
    if len(shape) > MAX_DIMENSIONS:
        raise _bad(file, f"{tensor} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are allowed")
    offsets = _integers(entry["data_offsets"], f"{tensor}: data_offsets", file)
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_bytes - data_begin:
        raise _bad(
            file,
            f"{tensor} has data_offsets {quoted(list(offsets))}, expected [begin, end] with "
            f"begin <= end <= {file_bytes - data_begin}, the bytes of data in this file",
        )
    begin, end = offsets
    expected_bits = _product(shape, limit=file_bytes * 8) * DTYPE_BITS[dtype]
    if expected_bits != (end - begin) * 8:
        raise _bad(
            file, f"{tensor} of dtype {dtype} and shape {quoted(list(shape))} does not match its {end - begin} bytes"
        )
    return TensorInfo(name=name, dtype=dtype, shape=shape, file=file, begin=data_begin + begin, end=data_begin + end)


def _integers(value: object, what: str, file: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise _bad(file, f"{what} is {quoted(value)}, a list of integers >= 0 expected")
    return tuple(value)


def _product(shape: tuple[int, ...], *, limit: int) -> int:
    """Multiply up; stop past `limit`, which no file of this size can hold, unless a later dimension is 0."""
    if 0 in shape:
        return 0
    product = 1
    for size in shape:
        product *= size
        if product > limit:
            return product
    return product


def _check_contiguous(tensors: list[TensorInfo], data_begin: int, file_bytes: int, file: Path) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin != position:
            fault = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            raise _bad(file, f"tensor {quoted(tensor.name)} {fault}: it begins at {tensor.begin}, expected {position}")
        position = tensor.end
    if position != file_bytes:
        raise _bad(
            file,
            f"the tensors end at byte {position}, but the file has {file_bytes} bytes ({format_bytes(file_bytes)})",
        )


class SafetensorsFile:
    """An open safetensors file with a checked header; reads by position, so threads may share it."""

    def __init__(
        self, file: BinaryIO, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
    ) -> None:
        self._file = file
        self.path = path
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Open a file and check its header; raise `CheckpointFormatError`. Peak bytes: see `parse_header`."""
        file = open_regular_file(path)
        try:
            file_bytes = os.fstat(file.fileno()).st_size
            length_field = os.pread(file.fileno(), LENGTH_BYTES, 0)
            header_bytes = check_header_length(length_field, file_bytes, source=path)
            header = bytearray(header_bytes)
            _read_into(file.fileno(), memoryview(header), LENGTH_BYTES, path)
            tensors, metadata = parse_header(bytes(header), file_bytes, file=path)
        except OSError as error:
            file.close()
            raise _read_error(path, error) from error
        except BaseException:
            file.close()
            raise
        return cls(file, path, tensors, metadata)

    def read_into(self, target: memoryview, begin: int) -> None:
        """Fill `target` (of bytes) from position `begin`, in slices of at most SLICE_BYTES; drop the pages behind.

        Raises `CheckpointFormatError` if the file has become shorter or cannot be read.
        """
        descriptor = self._file.fileno()
        try:
            for start in range(0, len(target), SLICE_BYTES):
                piece = target[start : start + SLICE_BYTES]
                _read_into(descriptor, piece, begin + start, self.path)
                self.release(begin + start, begin + start + len(piece))
        except OSError as error:
            raise _read_error(self.path, error) from error

    def status(self) -> os.stat_result:
        """Return size, times and owner of the file that is open here."""
        return os.fstat(self._file.fileno())

    def sample(self, num_samples: int, sample_bytes: int) -> list[bytes]:
        """Return `num_samples` pieces of `sample_bytes`, evenly spread from the first byte to the last one.

        Raises `CheckpointFormatError` if the file cannot be read. Peak bytes: the result.
        """
        last = max(0, self.status().st_size - sample_bytes)
        steps = max(1, num_samples - 1)
        try:
            return [os.pread(self._file.fileno(), sample_bytes, last * index // steps) for index in range(num_samples)]
        except OSError as error:
            raise _read_error(self.path, error) from error

    def release(self, begin: int, end: int) -> None:
        """Tell the kernel that bytes [begin, end) are not needed again: clean whole pages leave the page cache."""
        if end > begin:
            os.posix_fadvise(self._file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _read_into(descriptor: int, target: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            raise _bad(path, f"the file ended at byte {offset + done} while it was read: somebody truncated it")
        done += count


def _read_error(path: Path, error: OSError) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{path} cannot be read ({error.strerror or error}); check the disk, or download the file again"
    )
