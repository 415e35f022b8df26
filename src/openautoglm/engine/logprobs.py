"""Logprobs of a token, from a step's arrays to values."""

from __future__ import annotations

from openautoglm.engine.client import TokenLogprob
from openautoglm.engine.request import Sequence
from openautoglm.executor.protocol import StepResult

Logprobs = tuple[TokenLogprob, ...]


def token_logprobs(sequence: Sequence, token: int, index: int, logprob: float, result: StepResult) -> Logprobs:
    """Return the logprobs of a sampled token, the step's `index`-th; nothing where the request asked for none."""
    num_top = sequence.request.sampling.logprobs
    if num_top is None:
        return ()
    tokens, values = result.top_tokens[index, :num_top].tolist(), result.top_logprobs[index, :num_top].tolist()
    top = tuple((t, v) for t, v in zip(tokens, values, strict=True) if t >= 0)
    return (TokenLogprob(token=token, logprob=logprob, top=top),)
