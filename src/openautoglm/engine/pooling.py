"""Asks steps for the hidden states that pooled requests need, and gives them out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openautoglm.engine.schedule import Schedule
from openautoglm.executor.protocol import Float32, Int32, StepBatch


def ask_hidden(batch: StepBatch, schedule: Schedule) -> StepBatch:
    """Return the batch with the positions whose hidden states its pooled requests need."""
    indices: list[Int32] = []
    for row, offset in zip(schedule.rows, batch.row_offsets.tolist(), strict=False):
        pooled = row.sequence.request.pooled
        if pooled is not None:
            wanted = pooled.wanted(row.begin, row.end, last=row.samples)
            shift = offset - row.begin
            indices.append(np.arange(wanted.start + shift, wanted.stop + shift, dtype=np.int32))
    return batch if not indices else replace(batch, hidden_indices=np.concatenate(indices))


def take_hidden(schedule: Schedule, hidden: Float32) -> None:
    """Give each pooled request of a computed step its states."""
    begin = 0
    for row in schedule.rows:
        pooled = row.sequence.request.pooled
        if pooled is not None:
            wanted = pooled.wanted(row.begin, row.end, last=row.samples)
            pooled.take(wanted, hidden[begin : begin + len(wanted)])
            begin += len(wanted)
