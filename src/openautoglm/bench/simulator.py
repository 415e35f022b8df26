"""The real engine and scheduler on a clock that step times advance, in place of a model.

Thousands of requests take seconds. Prompts are different from each other, so that no prefix is shared, and answers end
where the trace says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from openautoglm.bench.idle_executor import Done, IdleExecutor, LetterTokenizer
from openautoglm.bench.replay import Replay, replay
from openautoglm.bench.step_table import StepTable
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.executor.protocol import SampleBatch, StepBatch
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import SchedulingOptions
from openautoglm.spec.step_cost import StepCost, StepLoad
from openautoglm.spec.trace import TraceRequest
from openautoglm.units import GIB

END_TOKEN = 1
TEXT_TOKEN = 2
VOCAB_SIZE = 50_000
IDLE_SECONDS = 1e-3
# Room for what requests are charged beside their blocks: a simulation is about time.
_REQUEST_SPACE_BYTES = 64 * GIB


class Price(Protocol):
    """Anything that says what a step takes."""

    def seconds(self, load: StepLoad) -> float:
        """Return the seconds of a step."""
        ...


@dataclass(slots=True)
class VirtualClock:
    """Seconds that pass when somebody says so."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class PricedExecutor(IdleExecutor):
    """Advances the clock by the price of each step. A choice ends at the length that its seed stands for."""

    def __init__(
        self,
        price: Price,
        clock: VirtualClock,
        lengths: Mapping[int, int],
        *,
        num_blocks: int,
        max_step_tokens: int,
        max_step_rows: int,
    ) -> None:
        super().__init__(
            num_blocks=num_blocks, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows, vocab_size=VOCAB_SIZE
        )
        self._price = price
        self._clock = clock
        self._lengths = np.zeros(max(lengths, default=0) + 1, dtype=np.int64)
        for seed, length in lengths.items():
            self._lengths[seed] = length

    def submit(self, batch: StepBatch) -> Done:
        """Let the time pass that the step takes, and answer."""
        self._clock.now += self._price.seconds(batch_load(batch))
        return super().submit(batch)

    def draw(self, sample: SampleBatch) -> NDArray[np.int32]:
        """Return text until the answer's length, then its end."""
        ends = sample.positions + 1 >= self._lengths[sample.seeds.astype(np.int64)]
        return np.where(ends, END_TOKEN, TEXT_TOKEN).astype(np.int32)


def batch_load(batch: StepBatch) -> StepLoad:
    """Return what a batch computes, as `engine.costs.step_load` counts it."""
    offsets = batch.row_offsets
    counts = (offsets[1:] - offsets[:-1]).astype(np.int64)
    ends = batch.positions[offsets[1:] - 1].astype(np.int64) + 1
    pairs = (counts - 1) * (2 * ends - counts) // 2
    return StepLoad(
        num_prompt_tokens=int(counts.sum()) - len(counts),
        num_rows=len(counts),
        num_keys=int(ends.sum()),
        num_pairs=int(pairs.sum()),
    )


class SimulatedServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is simulated: the sizes of an engine, and what its steps take. Kept as a file by `simulate --save-costs`."""

    model: str
    context_tokens: int
    num_blocks: int
    max_step_tokens: int
    max_step_rows: int
    steps: StepTable


def simulate(
    server: SimulatedServer,
    trace: Sequence[TraceRequest],
    *,
    scheduling: SchedulingOptions,
    max_running: int | None = None,
    max_queued: int = 256,
    step_cost: StepCost | None = None,
    price: Price | None = None,
) -> Replay:
    """Run a trace through a new engine and return what came of it, in virtual seconds.

    `step_cost` is what the engine expects of steps before it has seen any; `price` takes the place of the table.
    """
    clock = VirtualClock()
    executor = PricedExecutor(
        price or server.steps,
        clock,
        {index: request.output_tokens for index, request in enumerate(trace)},
        num_blocks=server.num_blocks,
        max_step_tokens=server.max_step_tokens,
        max_step_rows=server.max_step_rows,
    )
    engine = Engine(
        executor,
        LetterTokenizer(),
        eos_token_ids=(END_TOKEN,),
        context_tokens=server.context_tokens,
        max_running=max_running,
        max_queued=max_queued,
        clock=clock,
        request_space_bytes=_REQUEST_SPACE_BYTES,
        scheduling=scheduling,
        step_cost=step_cost,
    )

    def wait_until(seconds: float | None) -> None:
        clock.now = clock.now + IDLE_SECONDS if seconds is None else max(clock.now, seconds)

    return replay(engine, trace, _simulated_request, clock=clock, wait_until=wait_until)


def unshared_prompt(index: int, num_tokens: int) -> tuple[int, ...]:
    """Return a prompt that shares no block with that of another index."""
    return tuple(((np.arange(num_tokens) * 7919 + index * 104_729) % (VOCAB_SIZE - 10) + 10).tolist())


def _simulated_request(index: int, request: TraceRequest) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(index),
        prompt_tokens=unshared_prompt(index, request.prompt_tokens),
        sampling=SamplingParams(max_tokens=request.limit_tokens, seed=index),
        priority=request.priority,
        deadline_seconds=request.deadline_seconds,
    )
