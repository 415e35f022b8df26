"""What stands in each queue, and the other figures of a scheduler that an engine's status has."""

from __future__ import annotations

from collections import Counter
from typing import Any

from openautoglm.engine.client import QueueStatus
from openautoglm.engine.scheduler import Scheduler
from openautoglm.spec.scheduling import Queue


def scheduler_figures(scheduler: Scheduler, now_seconds: float) -> dict[str, Any]:
    """Return the fields of `EngineStatus` that the scheduler knows. Only reads, as `queue_status` does."""
    pool = scheduler.pool
    return {
        "num_running": len(scheduler.running),
        "num_blocks": pool.num_blocks,
        "num_free_blocks": pool.num_free,
        "num_cached_blocks": pool.num_cached,
        "prefix_query_tokens": scheduler.prefix_query_tokens,
        "prefix_hit_tokens": scheduler.prefix_hit_tokens,
        "num_preemptions": scheduler.num_preemptions,
        "num_spills": scheduler.num_spills,
        "recomputed_tokens": scheduler.num_recomputed_tokens,
        "queues": queue_status(scheduler, now_seconds),
        "budget": None if scheduler.budget is None else scheduler.budget.status(),
    }


def queue_status(scheduler: Scheduler, now_seconds: float) -> dict[str, QueueStatus]:
    """Return the state of every queue by its name. Only reads: another thread may ask in the middle of a step."""
    running = Counter(sequence.request.queue for sequence in tuple(scheduler.running))
    waiting: Counter[Queue] = Counter()
    oldest = dict.fromkeys(Queue, now_seconds)
    for sequence in tuple(scheduler.waiting):
        queue = sequence.request.queue
        waiting[queue] += 1
        oldest[queue] = min(oldest[queue], sequence.request.arrival_seconds)
    return {
        queue.label: QueueStatus(
            num_running=running[queue], num_waiting=waiting[queue], oldest_seconds=now_seconds - oldest[queue]
        )
        for queue in Queue
    }
