"""What small KV caches cost the embedded model beside the same weights with a wide one: divergence, greedy tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openautoglm import LLM
from openautoglm.executor.protocol import Executor
from openautoglm.quality.likelihood import mean_divergence, stream_logits

TEXT = Path(textwrap.__file__).read_text(encoding="utf-8")[:4000]


@pytest.fixture(scope="module")
def wide() -> Iterator[LLM]:
    with LLM("demo", quant="int8", kv="bf16", context=2048, concurrency=1) as llm:
        yield llm


def greedy(executor: Executor, tokens: list[int]) -> np.ndarray:
    """Return the most likely token after each of `tokens`."""
    return np.concatenate([logits.argmax(axis=1) for logits in stream_logits(executor, tokens)])


@pytest.mark.parametrize(("kv", "divergence", "agreement"), [("int8", 2e-3, 0.97), ("fp8", 1e-2, 0.95)])
def test_divergence_and_greedy_tokens(wide: LLM, kv: str, divergence: float, agreement: float) -> None:
    tokens = wide.tokenizer.encode(TEXT)
    with LLM("demo", quant="int8", kv=kv, context=2048, concurrency=1) as small:
        assert 0 < mean_divergence(wide.executor, small.executor, tokens) < divergence
        same = greedy(wide.executor, tokens) == greedy(small.executor, tokens)
    assert same.mean() >= agreement
    assert not same.all(), "the cache was another one"
