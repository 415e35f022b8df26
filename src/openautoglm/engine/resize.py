"""`PoolResize`: what came of making the KV pool smaller or larger between two steps."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.scheduler import Scheduler
from openautoglm.errors import OutOfMemoryError
from openautoglm.executor.protocol import Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolResize:
    """The outcome of `Engine.resize_pool`; blocks are of all layers.

    `target_blocks` were asked for, `num_blocks` are there now. `least_blocks` is the least that the unfinished requests
    allow: one of them may come to need that many alone. `num_missing` is 0, or how many blocks in use must be freed
    before the pool can shrink to max(target_blocks, least_blocks); nothing has changed then. `num_moved` blocks in use
    or cached were copied to lower places, `num_dropped` cached ones were forgotten. `given_back_bytes` were in memory
    and are the system's again; 0 for growth, whose memory is taken as it is written.
    """

    target_blocks: int
    num_blocks: int
    least_blocks: int
    num_missing: int = 0
    num_moved: int = 0
    num_dropped: int = 0
    given_back_bytes: int = 0


def resize_pool(
    pool: BlockPool, scheduler: Scheduler, executor: Executor, *, target_blocks: int, least_blocks: int
) -> PoolResize:
    """Resize `pool`, the executor's memory and every block table together; no step may be in flight.

    Raises `OutOfMemoryError`, changing nothing, when growth is refused by the ledger or the system.
    """
    wanted = min(max(target_blocks, least_blocks), executor.layout().max_blocks)
    if wanted >= pool.num_blocks:
        if wanted > pool.num_blocks:
            executor.resize_blocks(wanted)
            try:
                pool.grow(wanted)
            except OutOfMemoryError:
                executor.resize_blocks(pool.num_blocks)
                raise
        return PoolResize(target_blocks=target_blocks, num_blocks=wanted, least_blocks=least_blocks)
    num_missing = pool.num_live - wanted
    if num_missing > 0:
        return PoolResize(
            target_blocks=target_blocks,
            num_blocks=pool.num_blocks,
            least_blocks=least_blocks,
            num_missing=num_missing,
        )
    num_cached = pool.num_cached
    moves = pool.shrink(wanted)
    executor.copy_blocks(moves)
    scheduler.relocate(dict(moves))
    return PoolResize(
        target_blocks=target_blocks,
        num_blocks=wanted,
        least_blocks=least_blocks,
        num_moved=len(moves),
        num_dropped=num_cached - pool.num_cached,
        given_back_bytes=executor.resize_blocks(wanted),
    )
