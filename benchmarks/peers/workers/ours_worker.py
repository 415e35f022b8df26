"""This project's executor, driven as `openautoglm bench` drives it.

Job options: `quant` (int4, int8 or bf16) and `kv` (bf16 or int8).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from openautoglm import __version__
from openautoglm.bench.batches import Row, random_step
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.engine.assemble import prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.executor.load import load_model
from openautoglm.executor.protocol import StepBatch
from openautoglm.families.registry import weight_map
from openautoglm.native import _core
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from peers.protocol import Job, Session, serve_job


class OursSession(Session):
    """An executor whose pool has room for the largest batch of the longest sequence."""

    def __init__(self, job: Job) -> None:
        goal = Goal(
            quant=NumberFormat(job.options["quant"]),
            kv=NumberFormat(job.options["kv"]),
            context_tokens=max(job.prefill_tokens, job.decode_prompt_tokens + job.decode_new_tokens),
            concurrency=max(job.decode_batches),
            num_threads=job.num_threads,
        )
        prepared = prepare(EngineOptions(model=job.model, goal=goal))
        with Checkpoint.open(prepared.directory()) as checkpoint:
            shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
            weights = weight_map(prepared.spec, prepared.config, shapes)
            self._executor = load_model(checkpoint, prepared.spec, weights, prepared.plan)
        self._layout = self._executor.layout()

    def prefill(self, prompt: list[int]) -> float:
        return self._read(self._tables(1, len(prompt))[0], len(prompt))

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        length = len(prompts[0])
        tables = self._tables(len(prompts), length + num_steps)
        for table in tables:
            self._read(table, length)
        steps = [self._batch(tables, length + step, 1, sample=True) for step in range(num_steps)]
        return [self._step(step) for step in steps]

    def _tables(self, num_rows: int, num_tokens: int) -> list[tuple[int, ...]]:
        """Return disjoint tables of KV blocks."""
        size = -(-num_tokens // self._layout.groups[0].block_tokens)
        return [tuple(range(row * size, (row + 1) * size)) for row in range(num_rows)]

    def _read(self, table: tuple[int, ...], length: int) -> float:
        seconds = 0.0
        for begin in range(0, length, self._layout.max_step_tokens):
            end = min(length, begin + self._layout.max_step_tokens)
            seconds += self._step(self._batch([table], begin, end - begin, sample=end == length))
        return seconds

    def _batch(self, tables: Sequence[tuple[int, ...]], num_cached: int, num_new: int, *, sample: bool) -> StepBatch:
        rows = [Row(blocks=table, num_cached=num_cached, num_new=num_new) for table in tables]
        return random_step(rows, vocab_size=self._layout.vocab_size, seed=num_cached, sample=sample)

    def _step(self, batch: StepBatch) -> float:
        started = time.perf_counter()
        self._executor.submit(batch).result()
        return time.perf_counter() - started


def main() -> None:
    serve_job(
        OursSession, {"openautoglm": __version__, "isa": os.environ.get("OPENAUTOGLM_ISA") or _core.selected_isa()}
    )


if __name__ == "__main__":
    main()
