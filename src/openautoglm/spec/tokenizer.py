"""How large a tokenizer is, as far as its memory goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSize:
    """Entries of the vocabulary and merge rules (0 for tokenizers without)."""

    num_entries: int
    num_merges: int
