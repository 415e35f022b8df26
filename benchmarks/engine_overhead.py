"""Measures what the engine adds to a step: scheduling, batch arrays, detokenising, events; the executor does nothing.

    python benchmarks/engine_overhead.py

Prints microseconds per step (median, 95th percentile) of decoding, for several batches, contexts and samplings, and
with a queue whose deadlines are judged anew in every step. They are the thread's processor time: nothing here waits,
and what neighbours take of a shared machine is none of the engine's doing.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from openautoglm.bench.idle_executor import Done, IdleExecutor
from openautoglm.demo import checkpoint_directory
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.units import GIB

WARM_STEPS = 50
MEASURED_STEPS = 400
QUEUE_STEPS = 100


def measure(batch: int, context_tokens: int, sampling: SamplingParams) -> tuple[float, float]:
    """Return (median, 95th percentile) seconds of a decoding step."""
    tokenizer = Tokenizer.from_directory(checkpoint_directory())
    engine = Engine(IdleExecutor(), tokenizer, eos_token_ids=(5,), context_tokens=20_000, request_space_bytes=GIB)
    random = np.random.default_rng(0)
    for index in range(batch):
        prompt = tuple(random.integers(0, 1000, context_tokens).tolist())
        engine.add(GenerationRequest(request_id=str(index), prompt_tokens=prompt, sampling=sampling))
    while len(engine.step()) < batch:
        pass
    seconds = []
    for _ in range(WARM_STEPS + MEASURED_STEPS):
        begin = time.thread_time()
        engine.step()
        seconds.append(time.thread_time() - begin)
    seconds = sorted(seconds[WARM_STEPS:])
    return statistics.median(seconds), seconds[len(seconds) * 95 // 100]


class TickingExecutor(IdleExecutor):
    """A step takes a second of a clock of its own."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def submit(self, batch: StepBatch) -> Done:
        self.now += 1.0
        return super().submit(batch)


def measure_queue(batch: int, queued: int) -> tuple[float, float]:
    """Return (median, 95th percentile) seconds of a decoding step beside which all of a queue would be late as things
    are, but for whom there is hope yet; something changes in every step, so that all are asked again.
    """
    executor = TickingExecutor()
    tokenizer = Tokenizer.from_directory(checkpoint_directory())
    engine = Engine(
        executor,
        tokenizer,
        eos_token_ids=(5,),
        context_tokens=20_000,
        max_queued=queued,
        clock=executor.clock,
        request_space_bytes=GIB,
    )
    plain = SamplingParams(max_tokens=3000, seed=1, ignore_eos=True)
    long = SamplingParams(max_tokens=19_000, seed=1)
    prompt = tuple(np.random.default_rng(0).integers(0, 1000, 100).tolist())
    for index in range(batch):
        engine.add(GenerationRequest(request_id=str(index), prompt_tokens=prompt, sampling=plain))
    for _ in range(WARM_STEPS):
        engine.step()
    for index in range(queued):
        engine.add(
            GenerationRequest(
                request_id=f"q{index}", prompt_tokens=prompt, sampling=long, deadline_seconds=1.1 * QUEUE_STEPS
            )
        )
    seconds = []
    for _ in range(QUEUE_STEPS):
        engine.scheduler.wake()
        begin = time.thread_time()
        engine.step()
        seconds.append(time.thread_time() - begin)
    assert len(engine.scheduler.waiting) == queued
    seconds.sort()
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
    median, late = measure_queue(32, 512)
    print(f"{'batch 32, deadlines of 512 that wait':46} {median * 1e6:7.0f} us  p95 {late * 1e6:7.0f} us")


if __name__ == "__main__":
    main()
