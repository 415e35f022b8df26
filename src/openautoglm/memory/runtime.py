"""Bytes that a loaded model takes besides weights, KV pool and workspace: interpreter, libraries, text, transport.

The constants are upper bounds of what `benchmarks/plan_accuracy.py` measures in fresh processes (its results lie in
benchmarks/results/plan_accuracy.md): it loads every shape and format with the pool fully touched, runs a step of the
largest size, and compares the peak of the process with the plan's.
"""

from __future__ import annotations

from openautoglm.units import KIB, MIB

# Interpreter, numpy, tokenizers, jinja2, msgspec and this package's own code and extension, private or mapped.
PROCESS_BASE_BYTES = 80 * MIB
# Reading and packing a slice of a checkpoint: the largest part of a load that is not the model itself.
LOAD_SLICE_BYTES = 64 * MIB
# tokenizer.json while it is parsed and the tables it becomes: text, ids, merges and their hash maps.
TOKENIZER_BYTES_PER_TOKEN = 640
# Stack and allocator arena that one compute thread touches.
THREAD_BYTES = 256 * KIB


def tokenizer_bytes(vocab_size: int) -> int:
    """Return the estimated peak of loading a tokenizer of `vocab_size` entries."""
    return vocab_size * TOKENIZER_BYTES_PER_TOKEN


def runtime_bytes(vocab_size: int, num_threads: int) -> int:
    """Return what a process that runs a model takes besides the model's own arrays, at its peak."""
    return PROCESS_BASE_BYTES + LOAD_SLICE_BYTES + tokenizer_bytes(vocab_size) + num_threads * THREAD_BYTES
