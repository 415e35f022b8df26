"""An executor whose next token is a hash of the whole history as read through the block tables.

It keeps what a real one keeps, one (token, position) a slot, so a wrong table, a stale prefix block, a block given to
two sequences or a position that was never computed changes the tokens that come out. `isolated` says what a request
yields when nothing else runs, computed from the history alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import OutOfMemoryError
from openautoglm.executor.protocol import CacheGroup, ExecutorLayout, SampleBatch, StepBatch, StepResult
from openautoglm.spec.arch import ArchSpec

VOCAB = 101
EOS = 100
NAN_TOKEN = 99
EMPTY_SLOT = (-1, -1)
WORDS = ["a", "b", "ab", "ba", " ", "c", "abc", ".", "é", "xy"]


class WordTokenizer:
    """Token t reads as one of a few short words, so that stop strings do match."""

    decoder_rules: Mapping[str, object] | None = {
        "type": "Sequence",
        "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
    }
    special_token_ids = frozenset({EOS})

    def raw_token(self, token: int) -> str | None:
        if token == EOS:
            return "<eos>"
        return WORDS[token % len(WORDS)] if 0 <= token < VOCAB else None


def next_token(
    history: Sequence[int], seed: int, choice: int, position: int, temperature: float, banned: set[int]
) -> tuple[int, float]:
    """The model: a token and its logprob."""
    data = np.asarray(history, dtype=np.int32).tobytes()
    if temperature:
        data += f"|{seed}|{choice}|{position}".encode()
    value = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    token = value % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token, float(np.float32(-((value >> 32) % 1000) / 100))


@dataclass
class _Done:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class HistoryExecutor:
    """See the module. `fail` may raise for a batch; with `nan` the token NAN_TOKEN stands for a NaN row.

    With `memory_tokens` a token depends on so many before it alone, so that texts come to repeat themselves.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        max_blocks: int | None = None,
        block_tokens: int = 16,
        max_step_tokens: int = 64,
        max_step_rows: int = 16,
        nan: bool = False,
        fail: Callable[[StepBatch], None] | None = None,
        memory_tokens: int | None = None,
    ) -> None:
        self._memory_tokens = memory_tokens
        self._layout = ExecutorLayout(
            groups=(CacheGroup(layers=(0,), block_tokens=block_tokens, block_bytes=8 * block_tokens),),
            num_blocks=num_blocks,
            max_blocks=num_blocks if max_blocks is None else max_blocks,
            max_step_tokens=max_step_tokens,
            max_step_rows=max_step_rows,
            vocab_size=VOCAB,
        )
        self._block_tokens = block_tokens
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_tokens)
        self._random = random.Random(7)
        self._nan = nan
        self.fail = fail
        self.closed = False
        self.batches: list[StepBatch] = []
        self.keep_batches = False
        self.trims: list[list[int]] = []
        self.most_blocks: int | None = None  # growth beyond it is refused

    @staticmethod
    def supports(_spec: ArchSpec) -> tuple[str, ...]:
        return ()

    def layout(self) -> ExecutorLayout:
        return self._layout

    def submit(self, batch: StepBatch) -> _Done:
        if self.keep_batches:
            self.batches.append(batch)
        layout = self._layout
        assert 1 <= len(batch.tokens) <= layout.max_step_tokens
        assert len(batch.row_offsets) - 1 <= layout.max_step_rows
        if self.fail is not None:
            self.fail(batch)
        sample = batch.sample
        wanted = {} if sample is None else {int(t): s for s, t in enumerate(sample.token_indices)}
        num_sampled = len(wanted)
        width = 0 if sample is None else max(0, int(sample.num_logprobs.max(initial=0)))
        tokens = np.zeros((num_sampled, 1), dtype=np.int32)
        counts = np.ones(num_sampled, dtype=np.int32)
        logprobs = np.zeros(num_sampled, dtype=np.float32)
        top_tokens = np.full((num_sampled, width), -1, dtype=np.int32)
        top_logprobs = np.full((num_sampled, width), -1, dtype=np.float32)
        rows = list(range(len(batch.row_offsets) - 1))
        self._random.shuffle(rows)  # a row must not depend on another row of its own step
        for row in rows:
            begin, end = int(batch.row_offsets[row]), int(batch.row_offsets[row + 1])
            table = batch.block_tables[0][row]
            for index in range(begin, end):
                position = int(batch.positions[index])
                self._slots[self._slot(table, position)] = (int(batch.tokens[index]), position)
            for index in range(begin, end):
                if index not in wanted:
                    continue
                s = wanted[index]
                assert sample is not None
                history = self._history(table, int(batch.positions[index]) + 1)
                _check_history(sample, s, history)
                known = history if self._memory_tokens is None else history[-self._memory_tokens :]
                token, logprob = next_token(
                    known, int(sample.seeds[s]), int(sample.choices[s]), int(sample.positions[s]),
                    float(sample.temperatures[s]), _banned(sample, s),
                )  # fmt: skip
                tokens[s, 0], logprobs[s] = token, logprob
                top_tokens[s, : sample.num_logprobs[s]] = token
                top_logprobs[s, : sample.num_logprobs[s]] = logprob
                if self._nan and token == NAN_TOKEN:
                    counts[s] = 0
        return _Done(
            StepResult(
                tokens=tokens, num_tokens=counts, logprobs=logprobs, top_tokens=top_tokens, top_logprobs=top_logprobs
            )
        )

    def _slot(self, table: np.ndarray, position: int) -> int:
        block = int(table[position // self._block_tokens])
        assert block >= 0
        return block * self._block_tokens + position % self._block_tokens

    def _history(self, table: np.ndarray, length: int) -> list[int]:
        history = []
        for position in range(length):
            slot = self._slots[self._slot(table, position)]
            # What was never written, or written for another position, poisons the hash.
            history.append(slot[0] if slot is not None and slot[1] == position else -1 - position)
        return history

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        size = self._block_tokens
        for source, destination in pairs:
            content = self._slots[source * size : (source + 1) * size]
            self._slots[destination * size : (destination + 1) * size] = content

    def export_blocks(self, blocks: Sequence[int]) -> bytes:
        size = self._block_tokens
        slots = [slot or EMPTY_SLOT for block in blocks for slot in self._slots[block * size : (block + 1) * size]]
        return np.array(slots, dtype=np.int32).tobytes()

    def import_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        size = self._block_tokens
        slots = [(int(token), int(position)) for token, position in np.frombuffer(data, np.int32).reshape(-1, 2)]
        assert len(slots) == len(blocks) * size
        for index, block in enumerate(blocks):
            self._slots[block * size : (block + 1) * size] = slots[index * size : (index + 1) * size]

    def resize_blocks(self, num_blocks: int) -> int:
        if not 1 <= num_blocks <= self._layout.max_blocks:
            raise ValueError(num_blocks)
        if self.most_blocks is not None and num_blocks > max(self.most_blocks, self._layout.num_blocks):
            raise OutOfMemoryError(f"no memory for {num_blocks} blocks")
        num_given = max(0, self._layout.num_blocks - num_blocks)
        self._layout = replace(self._layout, num_blocks=num_blocks)
        del self._slots[num_blocks * self._block_tokens :]
        self._slots.extend([None] * (num_blocks * self._block_tokens - len(self._slots)))
        return num_given * self._layout.groups[0].block_bytes

    def limit_step_tokens(self, num_tokens: int) -> int:
        num_given = max(0, self._layout.max_step_tokens - num_tokens)
        self._layout = replace(self._layout, max_step_tokens=num_tokens)
        return num_given

    def trim(self, live_blocks: Sequence[int]) -> int:
        self.trims.append(list(live_blocks))
        live = set(live_blocks)
        for slot in range(len(self._slots)):
            if slot // self._block_tokens not in live:
                self._slots[slot] = None
        return 0

    def determinism(self) -> str:
        return "history"

    def close(self) -> None:
        self.closed = True


def _banned(sample: SampleBatch, s: int) -> set[int]:
    begin, end = int(sample.bias_offsets[s]), int(sample.bias_offsets[s + 1])
    entries = zip(sample.bias_tokens[begin:end], sample.bias_values[begin:end], strict=True)
    return {int(token) for token, value in entries if value == -np.inf}


def _check_history(sample: SampleBatch, s: int, history: list[int]) -> None:
    """The penalties' history is the same history."""
    begin, end = int(sample.history_offsets[s]), int(sample.history_offsets[s + 1])
    penalised = (
        sample.repetition_penalties[s] != 1 or sample.frequency_penalties[s] != 0 or sample.presence_penalties[s] != 0
    )
    expected = history if penalised else []
    assert sample.history_tokens[begin:end].tolist() == expected
    if penalised:
        assert int(sample.history_prompt_lengths[s]) == len(history) - int(sample.positions[s])


@dataclass(frozen=True)
class Outcome:
    """One finished choice."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: tuple[float, ...]


def isolated(request: GenerationRequest, choice: int, *, context_tokens: int, nan: bool = False) -> Outcome:
    """What a choice yields when nothing else runs: a plain loop over the model, text by plain string search."""
    sampling = request.sampling
    assert sampling.seed is not None
    limit = context_tokens - len(request.prompt_tokens)
    limit = limit if sampling.max_tokens is None else min(limit, sampling.max_tokens)
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
    history, logprobs, text = list(request.prompt_tokens), [], ""
    searched_from = 0
    seed = sampling.seed % (1 << 64)
    while True:
        position = len(history) - len(request.prompt_tokens)
        banned = ends if position < sampling.min_tokens else set()
        token, logprob = next_token(history, seed, choice, position, sampling.temperature, banned)
        generated = (*history[len(request.prompt_tokens) :], token)
        if nan and token == NAN_TOKEN:
            return Outcome(generated[:-1], text, "error", None, tuple(logprobs))
        history.append(token)
        if sampling.logprobs is not None:
            logprobs.append(logprob)
        special = token == EOS and sampling.skip_special_tokens
        piece = "" if special or (token in ends and not sampling.include_stop) else WordTokenizer().raw_token(token)
        text += piece or ""
        if position + 1 <= sampling.min_tokens:
            searched_from = len(text)
        found = _first_stop(text, sampling.stop, searched_from)
        if found is not None:
            end, stop = found
            text = text[:end] if sampling.include_stop else text[: end - len(stop)]
            return Outcome(generated, text, "stop", stop, tuple(logprobs))
        if token in ends:
            reason = token if token in sampling.stop_token_ids else None
            return Outcome(generated, text, "stop", reason, tuple(logprobs))
        if position + 1 == limit:
            return Outcome(generated, text, "length", None, tuple(logprobs))


def _first_stop(text: str, stops: tuple[str, ...], begin: int) -> tuple[int, str] | None:
    """The stop that ends first, the longest of those."""
    found = [(text.find(stop, begin) + len(stop), -len(stop), stop) for stop in stops if text.find(stop, begin) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


class Collector:
    """Joins events into outcomes and checks what every stream of events must hold."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self.errors: dict[str, str] = {}
        self.cached: dict[str, int] = {}

    def take(self, events: Sequence[GenerationEvent]) -> None:
        for event in events:
            key = (event.request_id, event.choice)
            old = self.outcomes.get(key, Outcome((), "", None, None, ()))
            assert old.finish_reason is None, "an event came after the last one"
            new = Outcome(
                old.tokens + event.tokens,
                old.text + event.text,
                event.finish_reason,
                event.stop_reason,
                old.logprobs + tuple(logprob.logprob for logprob in event.logprobs),
            )
            assert event.completion_tokens == len(new.tokens)
            assert event.cached_tokens < event.prompt_tokens
            assert (event.error is not None) == (event.finish_reason == "error")
            if event.error is not None:
                self.errors[event.request_id] = event.error
            self.cached[event.request_id] = event.cached_tokens
            self.outcomes[key] = new

    def finished(self, request_id: str, n: int) -> bool:
        return all(
            (request_id, c) in self.outcomes and self.outcomes[request_id, c].finish_reason is not None
            for c in range(n)
        )


def make_engine(executor: HistoryExecutor, **settings: object) -> Engine:
    """An engine over a `HistoryExecutor`."""
    values: dict[str, object] = {"eos_token_ids": (EOS,), "context_tokens": 512, **settings}
    return Engine(executor, WordTokenizer(), **values)  # type: ignore[arg-type]


def run_all(engine: Engine, requests: Sequence[GenerationRequest], *, max_steps: int = 10000) -> Collector:
    """Add all requests, step until idle, checking the pool after every step."""
    collector = Collector()
    for request in requests:
        engine.add(request)
    for _ in range(max_steps):
        if not engine.has_work:
            return collector
        collector.take(engine.step())
        engine.integrity_check()
    raise AssertionError(f"the engine is not idle after {max_steps} steps")


def out_of_memory_above(num_tokens: int) -> Callable[[StepBatch], None]:
    """A failure for every batch of more tokens than that."""

    def fail(batch: StepBatch) -> None:
        if len(batch.tokens) > num_tokens:
            raise OutOfMemoryError(f"no memory for {len(batch.tokens)} tokens")

    return fail
