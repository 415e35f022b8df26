"""What a tensor on disk is, and the number formats of the safetensors format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

# Bits of one element, as the safetensors format names them. Every name can be described; three can be read.
DTYPE_BITS: Mapping[str, int] = MappingProxyType({
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
})  # fmt: skip

# numpy's name of each format that is read; bfloat16 travels as its bits, since numpy has no such type.
READABLE_DTYPES: Mapping[str, str] = MappingProxyType({"F32": "<f4", "F16": "<f2", "BF16": "<u2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of a checkpoint: bytes [begin, end) of `file`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.begin

    @property
    def num_rows(self) -> int:
        """Rows: the first dimension; a scalar has one."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 for a tensor without elements."""
        return self.num_bytes // self.num_rows if self.num_rows else 0
