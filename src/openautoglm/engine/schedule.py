"""`Schedule`: what one step computes."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.engine.request import Sequence, SequenceState


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """Tokens [begin, end) of a sequence, computed in this step; `samples`: its next token is drawn.

    `draft` are tokens that may come next, computed behind them; what is drawn at each of them says if it was right.
    """

    sequence: Sequence
    begin: int
    end: int
    draft: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes for it."""
        return self.end - self.begin + len(self.draft)

    @property
    def samples(self) -> bool:
        """Whether the row reaches the sequence's last known token."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step: rows in the order of the batch."""

    rows: list[ScheduledRow]
    num_tokens: int

    @classmethod
    def of(cls, rows: list[ScheduledRow]) -> Schedule:
        """Return the step of these rows."""
        return cls(rows, sum(row.num_tokens for row in rows))

    def still_running(self) -> Schedule:
        """Return what is left of it: a step that ran out of memory may have set some back, who have no blocks then."""
        rows = [
            row
            for row in self.rows
            if row.sequence.state is SequenceState.RUNNING and row.sequence.num_computed == row.begin
        ]
        return self if len(rows) == len(self.rows) else Schedule.of(rows)

    def by_request(self) -> list[Schedule]:
        """Return a schedule for each request in this one."""
        parts: dict[str, list[ScheduledRow]] = {}
        for row in self.rows:
            parts.setdefault(row.sequence.request.request_id, []).append(row)
        return [Schedule.of(rows) for rows in parts.values()]

    def stamp(self, now_seconds: float) -> None:
        """Note the time for requests that start with this step."""
        for row in self.rows:
            if row.sequence.request.start_seconds is None:
                row.sequence.request.start_seconds = now_seconds
