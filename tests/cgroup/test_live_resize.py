"""Budget and hard limit halved and doubled again under load: announced, shrunk, lowered; the same answers throughout.

In a group of version 1 the kernel refuses a limit below the usage (EBUSY), so the limit is tried until it is accepted.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from overload.server import wait_until_idle
from tests.cgroup.served import Served, served
from tests.cgroup.under_load import CONCURRENCY, SETTINGS, answers, fill, loaded, memory, planned_budget, wait_until

pytestmark = pytest.mark.cgroup

SECONDS = 5.0  # from the announcement to the limit, and from the limit to the pool
NUM_TIMES = 20
GIB = 1 << 30


def resize(running: Served, *, big: int, small: int, pause_seconds: float) -> tuple[float, float]:
    """Go down and up once; return the seconds of each."""
    begin = time.monotonic()
    assert memory(running.url, small)["budget_bytes"] == small
    running.group.limit(small, seconds=SECONDS)
    down = time.monotonic() - begin
    time.sleep(pause_seconds)
    running.group.limit(big, seconds=SECONDS)
    begin = time.monotonic()
    memory(running.url, big)
    wait_until(lambda: is_whole(running.url), SECONDS, "the pool does not grow again")
    up = time.monotonic() - begin
    time.sleep(pause_seconds)
    return down, up


def is_whole(url: str) -> bool:
    report = memory(url)
    return report["pool_blocks"] == report["planned_blocks"]


def check_resizes(model: str, concurrency: int, *, big: int, small: int, pause_seconds: float) -> None:
    settings = [*SETTINGS, "--concurrency", str(concurrency), "--memory", str(big)]
    with served(model, *settings, limit_bytes=big) as running:
        expected, found, stop = answers(running.url), list[object](), threading.Event()

        def compare() -> None:
            while not stop.is_set():
                found.append(answers(running.url))

        asking = threading.Thread(target=compare)
        # The first time the pool is full: what is in use must really go.
        fill(running.url, concurrency)
        assert running.group.used_bytes() > 0.8 * big
        with loaded(running.url) as outcomes:
            asking.start()
            times = [resize(running, big=big, small=small, pause_seconds=pause_seconds) for _ in range(NUM_TIMES)]
            stop.set()
            asking.join()
        print(f"at most {max(down for down, _ in times):.2f} s down, {max(up for _, up in times):.2f} s up")
        assert max(map(max, times)) < SECONDS
        assert outcomes[0].faults == []
        assert outcomes[0].statuses[200] >= NUM_TIMES // 2
        assert len(found) >= 3
        assert all(one == expected for one in found)
        assert wait_until_idle(running.url)["openautoglm_kv_blocks:used"] == 0
        assert running.group.num_kills() == 0
        assert running.process.poll() is None


def test_budget_and_limit_halved_and_doubled_twenty_times(wide_model: Path):
    big = planned_budget(str(wide_model))
    check_resizes(str(wide_model), CONCURRENCY, big=big, small=big // 2, pause_seconds=0.2)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_eight_gibibytes_to_four_and_back_twenty_times(wide_model: Path):
    check_resizes(str(wide_model), 120, big=8 * GIB, small=4 * GIB, pause_seconds=2.0)
