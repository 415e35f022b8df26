"""Growth of memory that no ledger explains: from samples to a verdict. Pure, no clock, no files.

    anonymous = parts that were measured (weights, KV pool, workspace) + other
    other     = charges of what is under way (at most) + uncharged

A measured part is exact: what the pool takes when prefixes fill it, or gives back, is in neither of the other two. A
charge is only a bound, so `uncharged` falls while requests run and rises again when they end, with nothing taken; and
`other` rises while they run. Growth is therefore what BOTH have grown by: the smaller of the two.

    samples  |-- first minute --|------------ 4 minutes ------------|-- last minute --|
                  median  ---------------- 5 minutes --------------->  least             growth
             |<----------- median of the slopes between all pairs of samples --------->|  slope

What has grown stayed for a whole minute: spikes are none. The median of pairwise slopes (Theil 1950, Sen 1968) needs
growth that goes on: a single step, however high, is none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import combinations
from statistics import median

GROWTH_SECONDS = 300.0
END_SECONDS = 60.0
GROWTH_SHARE = 0.15
# Fewer samples at an end say too little: one that is late must not decide alone.
LEAST_END_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthSample:
    """One look: what takes memory beside the measured parts, and how much of that nothing under way was charged."""

    seconds: float
    other_bytes: int
    uncharged_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a window of samples shows. `rule` is the one that it breaks: "growth", "slope", or None."""

    grown_bytes: int
    bytes_per_minute: float
    seconds: float
    ledger_bytes: int
    rule: str | None


class GrowthWindow:
    """The samples of the last minutes."""

    def __init__(self, *, slope_bytes_per_minute: int | None = None) -> None:
        self._slope_bytes_per_minute = slope_bytes_per_minute
        self._samples: deque[GrowthSample] = deque()

    def add(self, sample: GrowthSample) -> None:
        """Take a sample; those that are too old are forgotten, and so is one of the same moment."""
        while self._samples and sample.seconds <= self._samples[-1].seconds:
            self._samples.pop()
        self._samples.append(sample)
        while sample.seconds - self._samples[0].seconds > GROWTH_SECONDS + END_SECONDS:
            self._samples.popleft()

    def clear(self) -> None:
        """Begin anew: after a report, growth counts from there."""
        self._samples.clear()

    def judge(self, ledger_bytes: int) -> Growth | None:
        """Return the growth, against a ledger of so many bytes; None before there are samples of a whole window."""
        samples = list(self._samples)
        if not samples:
            return None
        begin, end = samples[0].seconds, samples[-1].seconds
        first = [sample for sample in samples if sample.seconds <= begin + END_SECONDS]
        last = [sample for sample in samples if sample.seconds >= end - END_SECONDS]
        if end - begin < GROWTH_SECONDS or min(len(first), len(last)) < LEAST_END_SAMPLES:
            return None
        grown = min(
            min(sample.other_bytes for sample in last) - median(sample.other_bytes for sample in first),
            min(sample.uncharged_bytes for sample in last) - median(sample.uncharged_bytes for sample in first),
        )
        slope = 60 * min(
            _slope([(sample.seconds, sample.other_bytes) for sample in samples]),
            _slope([(sample.seconds, sample.uncharged_bytes) for sample in samples]),
        )
        return Growth(
            grown_bytes=int(grown),
            bytes_per_minute=slope,
            seconds=end - begin,
            ledger_bytes=ledger_bytes,
            rule=self._broken_rule(grown, slope, ledger_bytes),
        )

    def _broken_rule(self, grown_bytes: float, bytes_per_minute: float, ledger_bytes: int) -> str | None:
        if grown_bytes >= GROWTH_SHARE * ledger_bytes and grown_bytes > 0:
            return "growth"
        if self._slope_bytes_per_minute is not None and bytes_per_minute >= self._slope_bytes_per_minute:
            return "slope"
        return None


def _slope(points: list[tuple[float, int]]) -> float:
    """Return the median of the slopes between all pairs of points; their first coordinates ascend."""
    return median((late[1] - early[1]) / (late[0] - early[0]) for early, late in combinations(points, 2))
