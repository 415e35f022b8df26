"""Bytes that a loaded model takes besides weights, KV pool and workspace: interpreter, libraries, text, transport.

The constants are upper bounds of what `benchmarks/plan_accuracy.py` measures in fresh processes (its results lie in
benchmarks/results/): it loads every shape and format with the pool fully touched, runs a step of the largest size,
and compares the peak of the process with the plan's.
"""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.spec.tokenizer import TokenizerSize
from openautoglm.units import KIB, MIB

# Interpreter, numpy, tokenizers, msgspec, click and this package's own code and extension, private or mapped.
PROCESS_BASE_BYTES = 68 * MIB
# The killable process that renders chat templates.
TEMPLATE_PROCESS_BYTES = 16 * MIB
# The HTTP process of a server: the same interpreter with FastAPI, uvicorn and pydantic; it tokenises too.
HTTP_PROCESS_BYTES = 64 * MIB
# A loaded tokenizer.json: fitted to vocabularies of 4 k to 152 k entries with 4 k to 336 k merges. (Parsing takes a
# fifth more, before anything else is loaded.)
TOKENIZER_BASE_BYTES = 3 * MIB // 2
TOKENIZER_ENTRY_BYTES = 256
TOKENIZER_MERGE_BYTES = 464
# Without the file: published tokenizers have up to this many merges per entry of the vocabulary.
MERGES_PER_ENTRY = 2.2
# Stack and allocator arena that one compute thread touches.
THREAD_BYTES = 256 * KIB
# What pool and prefix cache keep of one block in Python: its key, its number, their places in lists and dictionaries.
# The most that tests/engine/test_block_index.py measures: of a pool that stays full for long, at sizes where a
# dictionary has just doubled, while the next one is built, with what the allocator rounds up (19 bytes).
BLOCK_INDEX_BYTES = 560


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeNeeds:
    """What the runtime's bytes depend on.

    `server` adds the HTTP process beside the engine's. `source_item_bytes` is the size of the checkpoint's numbers: a
    load holds slices of them. `source_bytes` are all of its tensors (None: two bytes a parameter, as published).
    `packed_cache` says whether packed weights are kept on disk for the next start.
    """

    tokenizer: TokenizerSize
    server: bool = False
    source_item_bytes: int = 2
    source_bytes: int | None = None
    packed_cache: bool = True


def estimated_tokenizer(vocab_size: int) -> TokenizerSize:
    """Return the size to plan with where no tokenizer.json is at hand."""
    return TokenizerSize(num_entries=vocab_size, num_merges=int(vocab_size * MERGES_PER_ENTRY))


def tokenizer_bytes(size: TokenizerSize) -> int:
    """Return what a tokenizer of this size takes in one process."""
    return TOKENIZER_BASE_BYTES + size.num_entries * TOKENIZER_ENTRY_BYTES + size.num_merges * TOKENIZER_MERGE_BYTES


def block_index_bytes(num_blocks: int) -> int:
    """Return the most that the index of a pool of so many blocks takes: which are free, cached or live, and by key."""
    return num_blocks * BLOCK_INDEX_BYTES


def runtime_parts(needs: RuntimeNeeds, num_threads: int) -> dict[str, int]:
    """Return what the processes that run a model take besides its own arrays and their index, by what it is for."""
    parts = {
        "process": PROCESS_BASE_BYTES + num_threads * THREAD_BYTES,
        "tokenizer": tokenizer_bytes(needs.tokenizer),
        "chat templates": TEMPLATE_PROCESS_BYTES,
    }
    if needs.server:
        parts["HTTP process"] = HTTP_PROCESS_BYTES + tokenizer_bytes(needs.tokenizer)
    return parts


def runtime_bytes(needs: RuntimeNeeds, num_threads: int) -> int:
    """Return what the processes that run a model take besides the model's own arrays and their index."""
    return sum(runtime_parts(needs, num_threads).values())
