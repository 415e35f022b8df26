"""How busy others kept the processors while something was measured: figures under load are no figures."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

# Of the first line of /proc/stat (proc(5)): the times in which a processor did nothing, idle and waiting for disks.
_IDLE_FIELDS = (3, 4)


class Neighbours:
    """Counts processor time from its making on, less that of this process and its finished children."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def busy_cores(self) -> float:
        """Return how many cores others took on average; time stolen from a virtual machine counts as theirs."""
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        # Ticks and clocks differ a little, which is not less than nothing.
        return max(0.0, others / (time.perf_counter() - self._started))


def _busy_seconds() -> float:
    first = Path("/proc/stat").read_text().splitlines()[0]
    # Guests' times are part of user and nice already: eight fields, up to stolen time, are the whole.
    ticks = [int(value) for value in first.split()[1:9]]
    return sum(value for index, value in enumerate(ticks) if index not in _IDLE_FIELDS) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
