"""Engine steps without a model, marked for callgrind: what scheduling costs beside the computation.

    valgrind --tool=callgrind --instr-atstart=no python tests/guards/scheduler_steps.py build/guards/libguard_marks.so

Run by tools/count_instructions.py. The executor answers at once with the same token; so what is counted is choosing the
rows, blocks and prefix keys, the arrays of the batch, and reporting the tokens. Prints the interpreter by which the
expected counts are filed.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.executor.protocol import CacheGroup, ExecutorLayout, StepBatch, StepResult
from openautoglm.spec.sampling import SamplingParams

BLOCK_TOKENS = 16
PROMPT_TOKENS = 20
WARM_UP_STEPS = 32
STEPS = 64  # four blocks of each sequence
TOKEN = 7


class LetterTokenizer:
    """Every token reads as one letter."""

    decoder_rules: Mapping[str, object] | None = None
    special_token_ids: frozenset[int] = frozenset()

    def raw_token(self, token: int) -> str | None:
        return "a"


@dataclass(frozen=True, slots=True)
class Answer:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class ConstantExecutor:
    """Answers each step with the same token for every row, from an array made beforehand. Keeps nothing."""

    def __init__(self, num_rows: int) -> None:
        self._layout = ExecutorLayout(
            groups=(CacheGroup(layers=(0,), block_tokens=BLOCK_TOKENS, block_bytes=1),),
            num_blocks=num_rows * 16,
            max_blocks=num_rows * 16,
            max_step_tokens=num_rows * PROMPT_TOKENS,
            max_step_rows=num_rows,
            vocab_size=100,
        )
        self._answer = Answer(
            StepResult(
                tokens=np.full((num_rows, 1), TOKEN, dtype=np.int32),
                num_tokens=np.ones(num_rows, dtype=np.int32),
                logprobs=np.zeros(num_rows, dtype=np.float32),
                top_tokens=np.empty((num_rows, 0), dtype=np.int32),
                top_logprobs=np.empty((num_rows, 0), dtype=np.float32),
            )
        )
        self._num_rows = num_rows

    def layout(self) -> ExecutorLayout:
        return self._layout

    def submit(self, batch: StepBatch) -> Answer:
        assert len(batch.row_offsets) == self._num_rows + 1
        return self._answer

    def determinism(self) -> str:
        return "constant"


def make_engine(num_rows: int) -> Engine:
    engine = Engine(ConstantExecutor(num_rows), LetterTokenizer(), eos_token_ids=(), context_tokens=16 * BLOCK_TOKENS)
    for row in range(num_rows):
        prompt = tuple((row * 31 + index) % 100 for index in range(PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=PROMPT_TOKENS + WARM_UP_STEPS + STEPS + 1, seed=row)
        engine.add(GenerationRequest(request_id=str(row), prompt_tokens=prompt, sampling=sampling))
    return engine


def interpreter() -> str:
    """What decides how many instructions the same Python code takes."""
    configured = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    optimised = ", profile-guided" if "--enable-optimizations" in configured else ""
    return (
        f"{platform.python_implementation()} {platform.python_version()} by {platform.python_compiler()}{optimised}, "
        f"numpy {np.__version__}, {' '.join(platform.libc_ver())}"
    )


def main() -> None:
    marks = ctypes.CDLL(sys.argv[1])
    print(f"interpreter: {interpreter()}")
    for num_rows in (1, 32):
        engine = make_engine(num_rows)
        for _ in range(WARM_UP_STEPS):
            assert len(engine.step()) == num_rows
        gc.collect()
        gc.disable()  # when a collection falls due depends on every allocation before
        marks.guard_begin_count()
        for _ in range(STEPS):
            engine.step()
        marks.guard_end_count(f"{num_rows} {'row' if num_rows == 1 else 'rows'}/{STEPS}".encode())
        gc.enable()
        assert len(engine.step()) == num_rows


if __name__ == "__main__":
    main()
