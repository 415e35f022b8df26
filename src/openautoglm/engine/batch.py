"""From a `Schedule` to the `StepBatch` that the executor runs."""

from __future__ import annotations

import numpy as np

from openautoglm.engine.request import Request, Sequence
from openautoglm.engine.schedule import Schedule, ScheduledRow
from openautoglm.executor.protocol import Float32, Int32, SampleBatch, StepBatch, UInt32

_ALL = np.uint32(0xFFFFFFFF)


def build_batch(schedule: Schedule, *, num_groups: int, constrained: bool = False) -> StepBatch:
    """Return the arrays of a step; every cache group reads the same block table, as a block holds all layers.

    `constrained` tells that there may be choices which follow a grammar.
    """
    rows = schedule.rows
    num_rows = len(rows)
    row_offsets = np.zeros(num_rows + 1, dtype=np.int32)
    if schedule.num_tokens == num_rows:
        row_offsets[1:] = np.arange(1, num_rows + 1)
        positions = np.array([row.begin for row in rows], dtype=np.int32)
        tokens = np.concatenate([row.sequence.tokens(row.begin, row.end) for row in rows])
    else:
        np.cumsum([row.num_tokens for row in rows], out=row_offsets[1:])
        positions = np.concatenate([np.arange(row.begin, row.end + len(row.draft), dtype=np.int32) for row in rows])
        tokens = np.concatenate(
            [
                part
                for row in rows
                for part in (row.sequence.tokens(row.begin, row.end), np.array(row.draft, dtype=np.int32))
            ]
        )
    return StepBatch(
        tokens=tokens,
        positions=positions,
        row_offsets=row_offsets,
        block_tables=(_block_table(rows),) * num_groups,
        sample=_sample_batch(rows, row_offsets, constrained=constrained),
    )


def _block_table(rows: list[ScheduledRow]) -> Int32:
    width = max(len(row.sequence.blocks) for row in rows)
    table = np.full((len(rows), width), -1, dtype=np.int32)
    for index, row in enumerate(rows):
        count = len(row.sequence.blocks)
        table[index, :count] = row.sequence.block_table[:count]
    return table


def _sample_batch(rows: list[ScheduledRow], row_offsets: Int32, *, constrained: bool) -> SampleBatch | None:
    indices = [index for index, row in enumerate(rows) if row.samples]
    if not indices:
        return None
    sequences = [rows[index].sequence for index in indices]
    token_indices = row_offsets[1:][indices] - 1
    drafts: list[Int32] | None = None  # what stands between each sequence's tokens and the token to draw, if anything
    if any(len(rows[index].draft) for index in indices):
        drawn = [(rows[index], ahead) for index in indices for ahead in range(len(rows[index].draft) + 1)]
        sequences = [row.sequence for row, _ in drawn]
        drafts = [np.array(row.draft[:ahead], dtype=np.int32) for row, ahead in drawn]
        lengths = [len(rows[index].draft) for index in indices]
        token_indices = np.concatenate(
            [np.arange(last - length, last + 1) for last, length in zip(token_indices, lengths, strict=True)]
        ).astype(np.int32)
    params = [sequence.request.sampling for sequence in sequences]
    positions = np.array([s.num_generated for s in sequences], dtype=np.int32)
    if drafts is not None:
        positions += np.array([len(draft) for draft in drafts], dtype=np.int32)
    history_offsets, history_tokens, history_prompt_lengths = _histories(sequences, drafts)
    bias_offsets, bias_tokens, bias_values = _biases(sequences, positions.tolist())
    return SampleBatch(
        token_indices=token_indices,
        temperatures=np.array([p.temperature for p in params], dtype=np.float32),
        top_ks=np.array([p.top_k for p in params], dtype=np.int32),
        top_ps=np.array([p.top_p for p in params], dtype=np.float32),
        min_ps=np.array([p.min_p for p in params], dtype=np.float32),
        repetition_penalties=np.array([p.repetition_penalty for p in params], dtype=np.float32),
        frequency_penalties=np.array([p.frequency_penalty for p in params], dtype=np.float32),
        presence_penalties=np.array([p.presence_penalty for p in params], dtype=np.float32),
        seeds=np.array([s.request.seed for s in sequences], dtype=np.uint64),
        choices=np.array([s.choice for s in sequences], dtype=np.int32),
        positions=positions,
        num_logprobs=np.array([-1 if p.logprobs is None else p.logprobs for p in params], dtype=np.int32),
        history_offsets=history_offsets,
        history_tokens=history_tokens,
        history_prompt_lengths=history_prompt_lengths,
        bias_offsets=bias_offsets,
        bias_tokens=bias_tokens,
        bias_values=bias_values,
        allowed_tokens=_allowed_tokens(sequences) if constrained else None,
    )


def _allowed_tokens(sequences: list[Sequence]) -> UInt32 | None:
    """Return the masks of all sequences, every bit set for those without a grammar; None where there is no grammar."""
    grammars = [(index, one.grammar) for index, one in enumerate(sequences) if one.grammar is not None]
    if not grammars:
        return None
    allowed = np.full((len(sequences), len(grammars[0][1].allowed)), _ALL, dtype=np.uint32)
    for index, grammar in grammars:
        allowed[index] = grammar.allowed
    return allowed


def _histories(sequences: list[Sequence], drafts: list[Int32] | None) -> tuple[Int32, Int32, Int32]:
    """Return (offsets [S+1], tokens, prompt lengths [S]); sequences without penalties own no tokens.

    `drafts` go on behind the sequences' own tokens.
    """
    offsets = np.zeros(len(sequences) + 1, dtype=np.int32)
    prompt_lengths = np.zeros(len(sequences), dtype=np.int32)
    histories = [np.empty(0, dtype=np.int32)]
    for index, sequence in enumerate(sequences):
        offsets[index + 1] = offsets[index]
        if sequence.request.has_penalties:
            histories.append(sequence.tokens())
            offsets[index + 1] += sequence.num_tokens
            if drafts is not None:
                histories.append(drafts[index])
                offsets[index + 1] += len(drafts[index])
            prompt_lengths[index] = sequence.request.num_prompt_tokens
    return offsets, np.concatenate(histories), prompt_lengths


def _biases(sequences: list[Sequence], positions: list[int]) -> tuple[Int32, Int32, Float32]:
    """Return (offsets [S+1], tokens, values); tokens that would end a choice too early get -inf."""
    offsets = np.zeros(len(sequences) + 1, dtype=np.int32)
    biases: list[tuple[int, float]] = []
    for index, sequence in enumerate(sequences):
        biases.extend(_bias_of(sequence.request, positions[index]))
        offsets[index + 1] = len(biases)
    tokens = np.array([token for token, _ in biases], dtype=np.int32)
    values = np.array([value for _, value in biases], dtype=np.float32)
    return offsets, tokens, values


def _bias_of(request: Request, num_generated: int) -> tuple[tuple[int, float], ...]:
    if num_generated >= request.sampling.min_tokens:
        return request.biases
    return request.early_biases
