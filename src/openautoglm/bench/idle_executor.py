"""`IdleExecutor`: an executor without a model, for measuring and simulating what is around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openautoglm.executor.protocol import CacheGroup, ExecutorLayout, SampleBatch, StepBatch, StepResult
from openautoglm.spec.arch import ArchSpec

BLOCK_TOKENS = 16
TOKEN = 77


@dataclass(frozen=True, slots=True)
class Done:
    """A step that has ended."""

    value: StepResult

    def result(self) -> StepResult:
        """Return what it came to."""
        return self.value


class LetterTokenizer:
    """Every token reads as one letter."""

    decoder_rules: Mapping[str, object] | None = None
    special_token_ids: frozenset[int] = frozenset()

    def raw_token(self, token: int) -> str | None:
        """Return the letter."""
        return "a"


class IdleExecutor:
    """Answers every step at once, always with TOKEN; a pool that never changes its size. Made to be derived from."""

    def __init__(
        self,
        *,
        num_blocks: int = 40_000,
        max_step_tokens: int = 512,
        max_step_rows: int = 64,
        vocab_size: int = 150_000,
    ) -> None:
        self._layout = ExecutorLayout(
            groups=(CacheGroup(layers=(0,), block_tokens=BLOCK_TOKENS, block_bytes=1),),
            num_blocks=num_blocks,
            max_blocks=num_blocks,
            max_step_tokens=max_step_tokens,
            max_step_rows=max_step_rows,
            vocab_size=vocab_size,
        )

    @staticmethod
    def supports(_spec: ArchSpec) -> tuple[str, ...]:
        """Return nothing: any model will do."""
        return ()

    def layout(self) -> ExecutorLayout:
        """Return the limits."""
        return self._layout

    def draw(self, sample: SampleBatch) -> NDArray[np.int32]:
        """Return the next token of each row that wants one."""
        return np.full(len(sample.token_indices), TOKEN, dtype=np.int32)

    def submit(self, batch: StepBatch) -> Done:
        """Answer at once."""
        sample = batch.sample
        tokens = np.empty(0, dtype=np.int32) if sample is None else self.draw(sample)
        count, width = len(tokens), 0 if sample is None else max(0, int(sample.num_logprobs.max()))
        return Done(
            StepResult(
                tokens=tokens.reshape(count, 1),
                num_tokens=np.ones(count, dtype=np.int32),
                logprobs=np.zeros(count, dtype=np.float32),
                top_tokens=np.zeros((count, width), dtype=np.int32),
                top_logprobs=np.zeros((count, width), dtype=np.float32),
            )
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Nothing is ever copied here."""
        assert not pairs

    def export_blocks(self, blocks: Sequence[int]) -> bytes:
        """Return a byte for each block."""
        return bytes(len(blocks))

    def import_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Take them back."""
        assert len(blocks) == len(data)

    def resize_blocks(self, num_blocks: int) -> int:
        """Refuse: the pool has one size."""
        raise ValueError(num_blocks)

    def limit_step_tokens(self, num_tokens: int) -> int:
        """Refuse: so have steps."""
        raise ValueError(num_tokens)

    def trim(self, live_blocks: Sequence[int]) -> int:
        """Give nothing back."""
        return 0 * len(live_blocks)

    def determinism(self) -> str:
        """Return a fingerprint."""
        return "idle"

    def close(self) -> None:
        """Hold nothing."""
        return
