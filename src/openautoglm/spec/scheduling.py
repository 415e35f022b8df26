"""How requests are put in order, and how fast tokens must come: queues, aging and latency targets.

The number is vLLM's `priority`: smaller goes first. Its sign is the queue, its size orders within that:

    queue     high      normal   batch
    number    < 0       0        > 0
    behind    -A to -2A    0     A to 2A     seconds, with A = `aging_seconds`

A request goes where it would stand if it had arrived so many seconds later. So a queue goes before the ones below it as
long as their requests have waited less than about A longer, and nobody is overtaken by who arrives more than 4A later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from openautoglm.errors import ConfigError

AGING_SECONDS = 120.0
MOST_PRIORITY = 1000


class Queue(Enum):
    """Which requests go first; the values are ranks."""

    HIGH = 0
    NORMAL = 1
    BATCH = 2

    @property
    def label(self) -> str:
        """The name in keys files, options and metrics."""
        return self.name.lower()


def queue_of(priority: int) -> Queue:
    """Return the queue of a priority number."""
    if priority == 0:
        return Queue.NORMAL
    return Queue.HIGH if priority < 0 else Queue.BATCH


def behind_seconds(priority: int, aging_seconds: float) -> float:
    """Return how much later a request counts as arrived: see the module. The first numbers differ most."""
    if priority == 0:
        return 0.0
    size = abs(priority)
    seconds = aging_seconds * (2 - 1 / size)
    return -seconds if priority < 0 else seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingOptions:
    """What an operator wants of the scheduler.

    `itl_seconds` is the most that should pass between two tokens of a stream, `ttft_seconds` from a request's arrival
    to its first token; None leaves it open. With `eases_streams` and no `itl_seconds`, prompts slow running streams
    down by a factor at most, unless that makes a prompt miss `ttft_seconds`. `aging_seconds` is how far queues differ.
    """

    itl_seconds: float | None = None
    ttft_seconds: float | None = None
    eases_streams: bool = False
    aging_seconds: float = AGING_SECONDS

    @property
    def limits_steps(self) -> bool:
        """Whether steps are ever made smaller than they could be."""
        return self.eases_streams or self.itl_seconds is not None or self.ttft_seconds is not None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for targets that are no times."""
        for name in ("itl_seconds", "ttft_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= 3600:
                raise ConfigError(f"{name} must be above 0 and at most 3600, got {seconds}")
        if not 0 <= self.aging_seconds <= 86400:
            raise ConfigError(f"aging_seconds must be from 0 to 86400, got {self.aging_seconds}")


PLAIN_SCHEDULING = SchedulingOptions()
