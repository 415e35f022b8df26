"""How times are spread over requests: mean, percentiles and the largest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a time is spread over requests, in seconds."""

    mean: float
    percentiles: dict[int, float]
    most: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name: mean, p50, ..., max."""
        return {"mean": self.mean, **{f"p{k}": v for k, v in self.percentiles.items()}, "max": self.most}


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of what is known; None of nothing."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    found = np.percentile(known, PERCENTILES)
    return Spread(
        mean=float(known.mean()),
        percentiles={name: float(value) for name, value in zip(PERCENTILES, found, strict=True)},
        most=float(known.max()),
    )


def spread_lines(spreads: Iterable[tuple[str, Spread | None]]) -> list[str]:
    """Return named spreads as aligned lines of milliseconds, with a head."""
    rows = [("ms", "mean", *(f"p{k}" for k in PERCENTILES), "max")]
    rows += [
        (name, *(f"{1e3 * value:,.1f}" for value in spread.as_dict().values()))
        for name, spread in spreads
        if spread is not None
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))]
        )
        for name, *figures in rows
    ]
