"""What runs before an engine takes requests, so that the first ones are as fast as those after them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import EngineError
from openautoglm.executor.protocol import Executor, SampleBatch, StepBatch
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.detokenize import TokenSource

# A rehearsal ends here: the largest steps of a large model take longer than anybody wants to wait for readiness.
REHEARSAL_SECONDS = 2.0
_FIRST_TOKENS = 16
_MOST_CHOICES = 8


def first_step(executor: Executor) -> None:
    """Run one token through the model, so that a load that cannot step fails here and not in the first request.

    Writes KV block 0, which holds nothing yet. Raises what the executor raises, and `EngineError` for NaN.
    """
    zero, none = np.zeros(1, dtype=np.int32), np.empty(0, dtype=np.int32)
    one = np.ones(1, dtype=np.float32)
    sample = SampleBatch(
        token_indices=zero,
        temperatures=one,
        top_ks=zero,
        top_ps=one,
        min_ps=one * 0,
        repetition_penalties=one,
        frequency_penalties=one * 0,
        presence_penalties=one * 0,
        seeds=np.zeros(1, dtype=np.uint64),
        choices=zero,
        positions=zero,
        num_logprobs=zero - 1,
        history_offsets=np.zeros(2, dtype=np.int32),
        history_tokens=none,
        history_prompt_lengths=zero,
        bias_offsets=np.zeros(2, dtype=np.int32),
        bias_tokens=none,
        bias_values=np.empty(0, dtype=np.float32),
    )
    tables = tuple(np.zeros((1, 1), dtype=np.int32) for _ in executor.layout().groups)
    offsets = np.array([0, 1], dtype=np.int32)
    batch = StepBatch(tokens=zero, positions=zero, row_offsets=offsets, block_tables=tables, sample=sample)
    if executor.submit(batch).result().num_tokens[0] != 1:
        raise EngineError("the model's first output is not a number (NaN): the checkpoint's weights are damaged")


def rehearse(
    executor: Executor,
    tokenizer: TokenSource,
    *,
    context_tokens: int,
    max_running: int,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run typical requests: prompts of growing length up to a whole step, several choices, every kind of sampling.

    For at most about REHEARSAL_SECONDS. They go through an engine of their own, whose counters and prefixes nobody
    sees; the blocks that they write hold nothing afterwards. Raises what the executor raises.
    """
    layout = executor.layout()
    engine = Engine(executor, tokenizer, eos_token_ids=(), context_tokens=context_tokens, max_running=max_running)
    num_choices = min(_MOST_CHOICES, max_running)
    ranked = SamplingParams(max_tokens=4, min_tokens=4, n=num_choices, logprobs=5, top_p=0.9, repetition_penalty=1.1)
    plain = SamplingParams(max_tokens=2, temperature=0.0)
    begin, num_tokens = clock(), min(_FIRST_TOKENS, engine.limits.context_tokens - 4)
    last_seconds = 0.0
    # A prompt of twice the tokens takes about twice as long: it is left out where there is no time for it.
    while num_tokens > 0 and clock() - begin + 2 * last_seconds < REHEARSAL_SECONDS:
        started = clock()
        prompt = tuple((num_tokens + 7 * index) % layout.vocab_size for index in range(num_tokens))
        for number, sampling in enumerate((ranked, plain)):
            engine.add(GenerationRequest(request_id=str(number), prompt_tokens=prompt, sampling=sampling))
            while engine.has_work:
                engine.step()
        last_seconds = clock() - started
        most = min(layout.max_step_tokens, engine.limits.context_tokens - 4)
        num_tokens = min(2 * num_tokens, most) if num_tokens < most else 0
