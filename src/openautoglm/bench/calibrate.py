"""Measuring what an engine's steps take, for simulations: prompts, decoding in batches, and both together."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from openautoglm.bench.simulator import SimulatedServer
from openautoglm.bench.step_table import fit_step_table
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import ConfigError
from openautoglm.executor.protocol import ExecutorLayout
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.step_cost import StepLoad

REPETITIONS = 4
_SHORT_TOKENS = 24
_FIRST_TOKEN_ID = 10


def calibrate(engine: Engine, layout: ExecutorLayout, *, model: str) -> SimulatedServer:
    """Measure an idle engine and return what simulates it.

    Takes some seconds for a small model, a minute or two where a token takes 10 ms. Raises `ConfigError` for a context
    that is too short to measure anything in.
    """
    if engine.limits.context_tokens < 4 * _SHORT_TOKENS:
        raise ConfigError(
            f"a context of {engine.limits.context_tokens} tokens is too short to measure steps: plan "
            f"{4 * _SHORT_TOKENS} or more"
        )
    probe = _Probe(engine, layout)
    sizes = _powers_of_two(layout.max_step_tokens)
    steps: list[tuple[StepLoad, float]] = []
    probe.prompt(sizes[-1])  # what is touched for the first time takes longer
    for num_rows, context_tokens, prompt_tokens in probe.cases(sizes):
        for _ in range(REPETITIONS if not num_rows else 1):
            steps += probe.beside(num_rows, context_tokens, prompt_tokens) if num_rows else probe.prompt(prompt_tokens)
    return SimulatedServer(
        model=model,
        context_tokens=engine.limits.context_tokens,
        num_blocks=layout.num_blocks,
        max_step_tokens=layout.max_step_tokens,
        max_step_rows=engine.max_running,
        steps=fit_step_table(sizes, steps),
    )


def _powers_of_two(most: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return [*sizes, max(most, 2)]


class _Probe:
    """Runs chosen steps on an engine and times them."""

    def __init__(self, engine: Engine, layout: ExecutorLayout) -> None:
        self._engine = engine
        self._layout = layout
        self._random = np.random.default_rng(0)
        self._num_requests = 0

    def cases(self, sizes: list[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (rows that decode, their context, prompt tokens beside them) of what is to be measured."""
        context, most_rows = self._engine.limits.context_tokens, self._engine.max_running
        longest = context - 2 * REPETITIONS - 2
        for size in sizes:
            if size < longest:
                yield 0, 0, size
        yield 0, 0, min(longest, 2 * self._layout.max_step_tokens)
        for size in sizes:
            if size > most_rows:
                break
            for length in {_SHORT_TOKENS, self._fitting(size, longest)}:
                yield size, length, 0
        for rows in {max(1, most_rows // 4), max(1, most_rows - 1)}:
            for prompt in (16, 64):
                if rows + prompt <= self._layout.max_step_tokens and rows < most_rows:
                    yield rows, _SHORT_TOKENS, prompt

    def prompt(self, num_tokens: int) -> list[tuple[StepLoad, float]]:
        """Compute a prompt, in as many steps as it needs, and draw its first token."""
        self._add(num_tokens, max_tokens=1)
        steps = []
        for begin in range(0, num_tokens, self._layout.max_step_tokens):
            end = min(num_tokens, begin + self._layout.max_step_tokens)
            steps.append((_load(0, 0, begin, end), self._timed_step()))
        return steps

    def beside(self, num_rows: int, context_tokens: int, prompt_tokens: int) -> list[tuple[StepLoad, float]]:
        """Decode `num_rows` rows of about so much context, with a prompt beside them in each step if there is one."""
        most_tokens = self._engine.limits.context_tokens - context_tokens
        names = [self._add(context_tokens, max_tokens=most_tokens) for _ in range(num_rows)]
        running = self._engine.scheduler.running
        for _ in range(num_rows * (2 + context_tokens // self._layout.max_step_tokens)):
            if len(running) == num_rows and all(one.num_pending == 1 for one in running):
                break
            self._engine.step()
        # A pool may have less room than was thought: what runs is what is measured.
        num_rows = len(running)
        steps = []
        for _ in range(REPETITIONS):
            num_keys = sum(one.num_tokens for one in running)
            if prompt_tokens:
                self._add(prompt_tokens, max_tokens=1)
            steps.append((_load(num_rows, num_keys, 0, prompt_tokens), self._timed_step()))
        for name in names:
            self._engine.abort(name)
        self._engine.step()
        return steps

    def _fitting(self, num_rows: int, longest: int) -> int:
        """Return a long context of which so many rows fit the pool."""
        each = self._layout.num_blocks // num_rows * self._layout.groups[0].block_tokens
        return max(_SHORT_TOKENS, min(longest, each - 4 * REPETITIONS - self._layout.groups[0].block_tokens))

    def _add(self, num_tokens: int, *, max_tokens: int) -> str:
        name = f"calibrate-{self._num_requests}"
        self._num_requests += 1
        # Prompts of their own, so that none is found in the cache.
        prompt = self._random.integers(_FIRST_TOKEN_ID, self._layout.vocab_size, num_tokens).tolist()
        self._engine.add(
            GenerationRequest(
                request_id=name,
                prompt_tokens=tuple(prompt),
                sampling=SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True, temperature=0.0),
            )
        )
        return name

    def _timed_step(self) -> float:
        begin = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - begin


def _load(num_rows: int, num_keys: int, begin: int, end: int) -> StepLoad:
    """Return the load of rows that decode, and of prompt tokens [begin, end) beside them if there are any."""
    count = end - begin
    return StepLoad(
        num_prompt_tokens=max(0, count - 1),
        num_rows=num_rows + (count > 0),
        num_keys=num_keys + end * (count > 0),
        num_pairs=max(0, count - 1) * (begin + end) // 2,
    )
