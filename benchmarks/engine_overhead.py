"""Measures what the engine adds to a step: scheduling, batch arrays, detokenising, events; the executor does nothing.

    python benchmarks/engine_overhead.py

Prints microseconds per step (median, 95th percentile) of decoding, for several batches, contexts and samplings.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from idle_executor import IdleExecutor
from openautoglm.demo import checkpoint_directory
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer

WARM_STEPS = 50
MEASURED_STEPS = 400


def measure(batch: int, context_tokens: int, sampling: SamplingParams) -> tuple[float, float]:
    """Return (median, 95th percentile) seconds of a decoding step."""
    tokenizer = Tokenizer.from_directory(checkpoint_directory())
    engine = Engine(IdleExecutor(), tokenizer, eos_token_ids=(5,), context_tokens=20_000)
    random = np.random.default_rng(0)
    for index in range(batch):
        prompt = tuple(random.integers(0, 1000, context_tokens).tolist())
        engine.add(GenerationRequest(request_id=str(index), prompt_tokens=prompt, sampling=sampling))
    while len(engine.step()) < batch:
        pass
    seconds = []
    for _ in range(WARM_STEPS + MEASURED_STEPS):
        begin = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - begin)
    seconds = sorted(seconds[WARM_STEPS:])
    return statistics.median(seconds), seconds[len(seconds) * 95 // 100]


def main() -> None:
    """Print one line per case."""
    plain = SamplingParams(max_tokens=3000, seed=1)
    stops = SamplingParams(max_tokens=3000, seed=1, stop=("abc", "xyz"), logprobs=5)
    penalties = SamplingParams(max_tokens=3000, seed=1, repetition_penalty=1.1, logit_bias=((1, 1.0),))
    cases = [(f"batch {batch}", batch, 100, plain) for batch in (1, 4, 16, 32, 64)]
    cases += [
        ("batch 32, context 8000", 32, 8000, plain),
        ("batch 32, stop strings and logprobs", 32, 100, stops),
        ("batch 32, context 2000, penalties and biases", 32, 2000, penalties),
    ]
    for name, batch, context_tokens, sampling in cases:
        median, late = measure(batch, context_tokens, sampling)
        print(f"{name:46} {median * 1e6:7.0f} us  p95 {late * 1e6:7.0f} us")


if __name__ == "__main__":
    main()
