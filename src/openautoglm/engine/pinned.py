"""Prompts that the operator pins: computed before the first request, in the pool for good, read by every tenant.

Whole blocks only, under the public root of the prefix cache (prefix.py). No request writes there: what follows a pinned
prefix belongs to its tenant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from openautoglm.engine.admission import AdmissionLimits
from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.prefix import PrefixCache
from openautoglm.errors import ConfigError
from openautoglm.executor.protocol import Executor, Int32, StepBatch


def preload(
    executor: Executor,
    pool: BlockPool,
    prefix: PrefixCache,
    prompts: Iterable[Sequence[int]],
    limits: AdmissionLimits,
) -> None:
    """Compute the prompts and pin their blocks; what two begin with is computed and kept once.

    Raises `ConfigError` where a prompt leaves no room in the context or the pool for a request of whole length, and
    what the executor raises.
    """
    for prompt in prompts:
        tokens = np.array(prompt, dtype=np.int32)
        keys = prefix.public_keys(tokens)
        known = [block for key in keys if (block := pool.lookup(key)) is not None]
        least_blocks = -(-limits.context_tokens // pool.block_tokens)
        if len(tokens) >= limits.context_tokens or pool.num_usable - (len(keys) - len(known)) < least_blocks:
            raise ConfigError(
                f"a pinned prompt of {len(tokens)} tokens leaves no room beside a request of "
                f"{limits.context_tokens} tokens, which is the context: plan for it, or pin less"
            )
        new = pool.allocate(len(keys) - len(known)) or []
        _compute(executor, tokens[: len(keys) * pool.block_tokens], known + new, first=len(known) * pool.block_tokens)
        for block, key in zip(new, keys[len(known) :], strict=True):
            pool.register(block, key)
        pool.pin(new)
        prefix.num_public_blocks = max(prefix.num_public_blocks, len(keys))


def _compute(executor: Executor, tokens: Int32, blocks: list[int], *, first: int) -> None:
    """Run the tokens from `first` on, in the largest steps that there may be."""
    layout = executor.layout()
    table = np.array([blocks], dtype=np.int32)
    for begin in range(first, len(tokens), layout.max_step_tokens):
        end = min(len(tokens), begin + layout.max_step_tokens)
        batch = StepBatch(
            tokens=tokens[begin:end],
            positions=np.arange(begin, end, dtype=np.int32),
            row_offsets=np.array([0, end - begin], dtype=np.int32),
            block_tables=(table,) * len(layout.groups),
        )
        executor.submit(batch).result()
