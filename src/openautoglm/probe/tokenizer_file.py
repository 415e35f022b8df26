"""The size of a tokenizer.json, counted without parsing it: parsing a large one takes longer than a plan may."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from openautoglm.spec.tokenizer import TokenizerSize

_CHUNK_BYTES = 1 << 20
_MERGES = re.compile(rb'"merges"\s*:\s*\[\s*(\[)?')


def probe_tokenizer(file: Path, vocab_size: int) -> TokenizerSize:
    """Count the merges of a tokenizer.json whose vocabulary has `vocab_size` entries.

    Merges are the strings behind the key "merges" (two each where they stand as pairs); escaped quotes are left out.
    The count may be off by a few hundred, which changes nothing in a plan. A file without merges has 0.
    """
    if file.stat().st_size == 0:
        return TokenizerSize(num_entries=vocab_size, num_merges=0)
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _MERGES.search(data)
        if found is None:
            return TokenizerSize(num_entries=vocab_size, num_merges=0)
        num_quotes = 0
        for begin in range(found.end(), len(data), _CHUNK_BYTES):
            chunk = data[begin : begin + _CHUNK_BYTES]
            num_quotes += chunk.count(b'"') - chunk.count(b'\\"')
        quotes_each = 2 if found.group(1) is None else 4
        return TokenizerSize(num_entries=vocab_size, num_merges=num_quotes // quotes_each)
