"""What a step costs in time, as a function of what it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What a step computes: rows that each draw a token at most, and prompt tokens beyond one a row.

    `num_keys` are the keys that the rows' last tokens look at, `num_pairs` the pairs of a query and a key of the rest.
    """

    num_prompt_tokens: int
    num_rows: int
    num_keys: int
    num_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step: `base_seconds` whatever it computes, and more for each part of its load."""

    base_seconds: float
    prompt_token_seconds: float
    row_seconds: float
    key_seconds: float = 0.0
    pair_seconds: float = 0.0

    def seconds(self, load: StepLoad) -> float:
        """Return the seconds of a step."""
        return (
            self.base_seconds
            + self.prompt_token_seconds * load.num_prompt_tokens
            + self.row_seconds * load.num_rows
            + self.key_seconds * load.num_keys
            + self.pair_seconds * load.num_pairs
        )
