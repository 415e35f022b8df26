"""The rows of the table: what is compared with what, in interleaved rounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablated.run import Run, run
from ablated.variants import Variant
from ablated.workload import Ask
from openautoglm.engine.assemble import OpenedEngine
from openautoglm.spec.formats import NumberFormat

MIXED, SHARED = "mixed", "shared"
WIDE, NARROW = NumberFormat.BF16, NumberFormat.INT8
PLAIN = Variant(paging=True, prefix=False)
CONTIGUOUS = Variant(paging=False, prefix=False)
REUSING = Variant(paging=True, prefix=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: an engine, and the format of its cache."""

    variant: Variant
    kv: NumberFormat = WIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed elsewhere: per cent of KV memory saved, and of latency added."""

    saved_percent: int
    added_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A feature on and off over one workload.

    `tight` gives both sides no more blocks than paging was seen to need, so that both have the same memory. Outputs
    must be equal unless `exact` is False.
    """

    name: str
    on: Side
    off: Side
    workload: str
    claim: Claim | None = None
    tight: bool = False
    exact: bool = True


COMPARISONS = (
    Comparison(
        name="paging",
        on=Side(variant=PLAIN),
        off=Side(variant=CONTIGUOUS),
        workload=MIXED,
        claim=Claim(saved_percent=35, added_percent=8),
    ),
    Comparison(
        name="paging, equal memory", on=Side(variant=PLAIN), off=Side(variant=CONTIGUOUS), workload=MIXED, tight=True
    ),
    Comparison(
        name="prefix reuse",
        on=Side(variant=REUSING),
        off=Side(variant=PLAIN),
        workload=SHARED,
        claim=Claim(saved_percent=52, added_percent=3),
    ),
    Comparison(name="prefix reuse, nothing shared", on=Side(variant=REUSING), off=Side(variant=PLAIN), workload=MIXED),
    Comparison(
        name="int8 KV",
        on=Side(variant=REUSING, kv=NARROW),
        off=Side(variant=REUSING),
        workload=MIXED,
        claim=Claim(saved_percent=48, added_percent=12),
        exact=False,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One round of a comparison."""

    on: Run
    off: Run


class ChangedError(Exception):
    """A feature that must not change a token has changed one, or a rerun gave other tokens or took other blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Loaded models by the format of their cache, and workloads by name."""

    opened: Mapping[NumberFormat, OpenedEngine]
    workloads: Mapping[str, Sequence[Ask]]
    concurrency: int

    def run(self, comparison: Comparison, side: Side, num_blocks: int | None = None) -> Run:
        """Run one side of a comparison."""
        asks = self.workloads[comparison.workload]
        return run(self.opened[side.kv], side.variant, asks, concurrency=self.concurrency, num_blocks=num_blocks)

    def tight_blocks(self, comparison: Comparison) -> int:
        """Return the blocks that paging needs at once: the pool of both sides."""
        block_tokens = self.opened[comparison.on.kv].executor.layout().groups[0].block_tokens
        largest = max(len(ask.prompt) + ask.max_tokens for ask in self.workloads[comparison.workload])
        live_blocks = self.run(comparison, comparison.on).high_water.live_blocks
        return max(live_blocks, -(-largest // block_tokens))


def run_rounds(
    bench: Bench, comparisons: Sequence[Comparison], num_rounds: int
) -> Iterator[dict[str, tuple[Pair, ...]]]:
    """Yield all pairs so far, by comparison, after each new one; sides take turns in going first.

    Raises `ChangedError` as soon as something differs that must not.
    """
    # The first steps of a load touch its workspace, which costs time and would count as memory of the pool.
    for kv in bench.opened:
        bench.run(comparisons[0], Side(variant=PLAIN, kv=kv))
    blocks = {one.name: bench.tight_blocks(one) if one.tight else None for one in comparisons}
    pairs: dict[str, tuple[Pair, ...]] = {}
    for index in range(num_rounds):
        for comparison in comparisons:
            pair = _run_pair(bench, comparison, blocks[comparison.name], on_first=index % 2 == 1)
            pairs[comparison.name] = (*pairs.get(comparison.name, ()), pair)
            check_rounds(comparison, pairs[comparison.name])
            print(f"round {index + 1}, {comparison.name}: {_line(pair)}", file=sys.stderr)
            yield dict(pairs)


def _run_pair(bench: Bench, comparison: Comparison, num_blocks: int | None, *, on_first: bool) -> Pair:
    if on_first:
        on = bench.run(comparison, comparison.on, num_blocks)
        return Pair(on=on, off=bench.run(comparison, comparison.off, num_blocks))
    off = bench.run(comparison, comparison.off, num_blocks)
    return Pair(on=bench.run(comparison, comparison.on, num_blocks), off=off)


def check_rounds(comparison: Comparison, pairs: Sequence[Pair]) -> None:
    """Raise `ChangedError` where rounds of one side differ, or the outputs of the two sides of an exact comparison.

    Nothing in a schedule depends on time, so blocks are as reproducible as tokens.
    """
    first, last = pairs[0], pairs[-1]
    for name, one, other in (("on", first.on, last.on), ("off", first.off, last.off)):
        if one.outputs != other.outputs:
            raise ChangedError(f"{comparison.name}, {name}: round {len(pairs)} gives other tokens than the first")
        if one.high_water != other.high_water:
            raise ChangedError(f"{comparison.name}, {name}: round {len(pairs)} takes other blocks than the first")
    if comparison.exact and last.on.outputs != last.off.outputs:
        raise ChangedError(f"{comparison.name}: on and off give different tokens")


def _line(pair: Pair) -> str:
    return (
        f"off {pair.off.tokens_per_second:.1f} tokens/s, {pair.off.high_water.live_blocks} blocks; on "
        f"{pair.on.tokens_per_second:.1f} tokens/s, {pair.on.high_water.live_blocks} blocks; others "
        f"{max(pair.on.others_busy_cores, pair.off.others_busy_cores):.2f} cores"
    )
