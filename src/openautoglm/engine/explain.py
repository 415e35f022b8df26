"""Records of requests: made from a request, kept for a while, told as text."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from openautoglm.engine.record import ChoiceRecord, RequestRecord
from openautoglm.engine.request import Request, Sequence
from openautoglm.engine.timeline import Phase
from openautoglm.spec.pressure import Rung
from openautoglm.units import KIB

HISTORY_BYTES = 512 * KIB
# The entry of a mapping, its key and the head of a bytes object, beside what they hold.
ENTRY_BYTES = 200


def make_record(request: Request, now_seconds: float) -> RequestRecord:
    """Return what is to be told of a request at `now_seconds`, finished or not."""
    return RequestRecord(
        request_id=request.request_id,
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        total_seconds=(request.end_seconds or now_seconds) - request.arrival_seconds,
        rungs=rung_labels(request.rungs),
        choices=tuple(_choice_record(sequence, now_seconds) for sequence in request.sequences),
        spilled_blocks=request.num_spilled_blocks,
        restored_blocks=request.num_restored_blocks,
        recomputed_tokens=request.num_recomputed_tokens,
        deadline_seconds=request.deadline_seconds,
        constraint_seconds=request.constraint_seconds,
        mask_seconds=request.mask_seconds,
        error=request.error,
    )


def _choice_record(sequence: Sequence, now_seconds: float) -> ChoiceRecord:
    timeline = sequence.timeline
    queue, prefill, decode, preempted, spilled = timeline.seconds(now_seconds)
    return ChoiceRecord(
        choice=sequence.choice,
        finish_reason=sequence.finish_reason if timeline.phase is Phase.ENDED else None,
        completion_tokens=sequence.num_generated,
        queue_seconds=queue,
        prefill_seconds=prefill,
        decode_seconds=decode,
        preempted_seconds=preempted,
        spilled_seconds=spilled,
        num_preemptions=timeline.num_preemptions,
        num_spills=timeline.num_spills,
    )


def rung_labels(rungs: int) -> tuple[str, ...]:
    """Return the names of a set of rungs, given as bits, mildest first."""
    return tuple(rung.label for rung in Rung if rungs >> rung & 1 and rung is not Rung.NONE)


class RequestHistory:
    """The last records, by request id, in at most `max_bytes`; the oldest go first. One thread only."""

    def __init__(self, max_bytes: int = HISTORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._encoder = msgspec.msgpack.Encoder()

    @property
    def num_bytes(self) -> int:
        """Bytes that the records take."""
        return self._bytes

    def add(self, record: RequestRecord) -> None:
        """Keep a record; one that is larger than the whole history is not kept."""
        data = self._encoder.encode(record)
        self._forget(record.request_id)
        self._records[record.request_id] = data
        self._bytes += _entry_bytes(record.request_id, data)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._records)))

    def find(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request; None if there was none, or if it has been forgotten."""
        data = self._records.get(request_id)
        if data is None:
            return None
        self._records.move_to_end(request_id)
        return msgspec.msgpack.decode(data, type=RequestRecord)

    def _forget(self, request_id: str) -> None:
        data = self._records.pop(request_id, None)
        if data is not None:
            self._bytes -= _entry_bytes(request_id, data)


def _entry_bytes(request_id: str, data: bytes) -> int:
    return len(data) + len(request_id) + ENTRY_BYTES


def explain_text(record: RequestRecord) -> str:
    """Return a record for people: one line a choice, and what the ladder did."""
    lines = [
        f"{record.request_id}: {record.prompt_tokens} prompt tokens ({record.cached_tokens} cached), "
        f"{record.total_seconds:.3f} s"
        + ("" if record.deadline_seconds is None else f" of {record.deadline_seconds:g} s allowed")
    ]
    for choice in record.choices:
        parts = {
            "queue": choice.queue_seconds,
            "prefill": choice.prefill_seconds,
            "decode": choice.decode_seconds,
            "preempted": choice.preempted_seconds,
            "spilled": choice.spilled_seconds,
        }
        spent = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in parts.items() if seconds > 0)
        lines.append(
            f"  choice {choice.choice}: {choice.completion_tokens} tokens, {choice.finish_reason or 'still running'}; "
            f"{spent or 'no time yet'}"
        )
        if choice.num_preemptions or choice.num_spills:
            lines.append(f"    preempted {choice.num_preemptions} times, spilled {choice.num_spills} times")
    if record.spilled_blocks or record.recomputed_tokens:
        lines.append(
            f"  KV cache: {record.spilled_blocks} blocks left memory, {record.restored_blocks} came back, "
            f"{record.recomputed_tokens} tokens were computed again"
        )
    if record.constraint_seconds:
        lines.append(
            f"  constraint: {record.constraint_seconds:.3f} s until it was compiled, "
            f"{record.mask_seconds:.3f} s for masks"
        )
    lines.append(f"  rungs: {', '.join(record.rungs) or 'none: memory was never tight for it'}")
    if record.error is not None:
        lines.append(f"  error: {record.error}")
    return "\n".join(lines)
