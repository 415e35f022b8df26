"""Measuring a loaded executor: prefill, decoding in batches, time to first token; whole steps, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from openautoglm.bench.batches import Row, random_step
from openautoglm.bench.roofline import Roofline
from openautoglm.bench.work import Work, step_work
from openautoglm.executor.native import NativeExecutor
from openautoglm.executor.protocol import ExecutorLayout
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats

PREFILL_TOKENS = (128, 512, 2048)
DECODE_BATCHES = (1, 4, 16, 32)
DECODE_PROMPT_TOKENS = 128
FIRST_TOKEN_PROMPT_TOKENS = 128
DECODE_STEPS = 24
REPETITIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One scenario: median seconds of its repetitions, tokens of each, and the least time its work takes.

    `kind` is "prefill", "decode" or "first_token"; `size` is prompt tokens or the batch. `read_bytes_per_second`: at
    which the weights themselves could be read around it, the best before and after; None where it was not measured.
    """

    kind: str
    size: int
    seconds: float
    fastest_seconds: float
    num_tokens: int
    work: Work
    read_bytes_per_second: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the median."""
        return self.num_tokens / self.seconds

    def least_seconds(self, roofline: Roofline) -> float:
        """Return T_min."""
        return self.work.least_seconds(roofline, self.read_bytes_per_second)

    def roofline_share(self, roofline: Roofline) -> float:
        """Return T_min / T for the median; above 1 means that a probe is wrong."""
        return self.least_seconds(roofline) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured."""

    executor: NativeExecutor
    spec: ArchSpec
    formats: ModelFormats

    def layout(self) -> ExecutorLayout:
        """Return the executor's limits."""
        return self.executor.layout()


def measure_all(subject: Subject, *, repetitions: int = REPETITIONS) -> Iterator[Measurement]:
    """Yield every scenario that the executor's pool and the model's positions have room for."""
    for num_tokens in PREFILL_TOKENS:
        if fits(subject, 1, num_tokens):
            yield measure_prefill(subject, num_tokens, repetitions)
    for batch in DECODE_BATCHES:
        if fits(subject, batch, DECODE_PROMPT_TOKENS + DECODE_STEPS * repetitions + 1):
            yield measure_decode(subject, batch, repetitions)
    if fits(subject, 1, FIRST_TOKEN_PROMPT_TOKENS):
        yield measure_first_token(subject, repetitions)


def fits(subject: Subject, num_rows: int, num_tokens: int) -> bool:
    """Return whether `num_rows` sequences of `num_tokens` fit pool, step and positions."""
    layout = subject.layout()
    blocks_each = -(-num_tokens // layout.groups[0].block_tokens)
    return (
        num_tokens <= subject.spec.max_positions
        and num_rows * blocks_each <= layout.num_blocks
        and num_rows <= min(layout.max_step_rows, layout.max_step_tokens)
    )


def measure_prefill(subject: Subject, num_tokens: int, repetitions: int) -> Measurement:
    """Time a prompt of `num_tokens`, in as few steps as the executor takes it; the head runs once, at its end."""
    seconds = [_prefill(subject, _tables(subject, 1, num_tokens), num_tokens, seed) for seed in range(repetitions + 1)]
    work = step_work(subject.spec, subject.formats, [(0, num_tokens)], 1)
    return _measurement("prefill", num_tokens, seconds[1:], num_tokens, work)


def measure_first_token(subject: Subject, repetitions: int) -> Measurement:
    """Time a short prompt up to its first token, in a warm process."""
    size = FIRST_TOKEN_PROMPT_TOKENS
    seconds = [_prefill(subject, _tables(subject, 1, size), size, seed) for seed in range(2 * repetitions + 1)]
    work = step_work(subject.spec, subject.formats, [(0, size)], 1)
    return _measurement("first_token", size, seconds[1:], 1, work)


def measure_decode(subject: Subject, batch: int, repetitions: int) -> Measurement:
    """Time decoding steps of `batch` sequences after prompts of DECODE_PROMPT_TOKENS; each row draws one token."""
    num_steps = DECODE_STEPS * repetitions
    tables = _tables(subject, batch, DECODE_PROMPT_TOKENS + num_steps + 1)
    for index, table in enumerate(tables):
        _prefill(subject, [table], DECODE_PROMPT_TOKENS, index)
    seconds = []
    bandwidth = subject.executor.weight_read_bandwidth()
    for step in range(num_steps + 1):
        rows = [Row(blocks=table, num_cached=DECODE_PROMPT_TOKENS + step, num_new=1) for table in tables]
        seconds.append(_step(subject, rows, step, sample=True))
    middle = DECODE_PROMPT_TOKENS + num_steps // 2
    work = step_work(subject.spec, subject.formats, [(middle, 1)] * batch, batch)
    bandwidth = max(bandwidth, subject.executor.weight_read_bandwidth())
    return replace(_measurement("decode", batch, seconds[1:], batch, work), read_bytes_per_second=bandwidth)


def _measurement(kind: str, size: int, seconds: Sequence[float], num_tokens: int, work: Work) -> Measurement:
    return Measurement(
        kind=kind,
        size=size,
        seconds=statistics.median(seconds),
        fastest_seconds=min(seconds),
        num_tokens=num_tokens,
        work=work,
    )


def _tables(subject: Subject, num_rows: int, num_tokens: int) -> list[tuple[int, ...]]:
    """Return disjoint block tables for `num_rows` sequences of `num_tokens`."""
    size = -(-num_tokens // subject.layout().groups[0].block_tokens)
    return [tuple(range(row * size, (row + 1) * size)) for row in range(num_rows)]


def _prefill(subject: Subject, tables: Sequence[tuple[int, ...]], num_tokens: int, seed: int) -> float:
    """Run prompts in chunks of the largest step; return the seconds of all steps."""
    chunk = max(1, subject.layout().max_step_tokens // len(tables))
    seconds = 0.0
    for begin in range(0, num_tokens, chunk):
        count = min(chunk, num_tokens - begin)
        rows = [Row(blocks=table, num_cached=begin, num_new=count) for table in tables]
        seconds += _step(subject, rows, seed + begin, sample=begin + count == num_tokens)
    return seconds


def _step(subject: Subject, rows: Sequence[Row], seed: int, *, sample: bool) -> float:
    batch = random_step(rows, vocab_size=subject.spec.vocab_size, seed=seed, sample=sample)
    started = time.perf_counter()
    subject.executor.submit(batch).result()
    return time.perf_counter() - started
