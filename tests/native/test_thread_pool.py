"""The team of threads: same results for every size, affinity given back, no processor time when idle, clean ends."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from openautoglm.native import _core

INT8 = 2


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def pack_something(pool: _core.ThreadPool, rows: int = 200) -> _core.WeightStore:
    store = _core.WeightStore(pool, [(INT8, rows, 256, 0)])
    assert store.pack_rows(0, 0, 1, np.ones((rows, 256), dtype=np.float32)) == -1
    return store


def test_threads_start_work_and_end() -> None:
    before = num_threads()
    pool = _core.ThreadPool(4)
    assert pool.num_threads == 4
    assert num_threads() == before + 3
    pack_something(pool)
    del pool
    deadline = time.monotonic() + 5
    while num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() == before


def test_many_short_runs_with_more_threads_than_cores() -> None:
    pool = _core.ThreadPool(2 * (os.cpu_count() or 1) + 1)
    assert not pool.pinned
    rows = np.ones((64, 256), dtype=np.float32)
    store = _core.WeightStore(pool, [(INT8, 64, 256, 0)])
    for _ in range(500):
        assert store.pack_rows(0, 0, 1, rows) == -1
    assert store.rows_packed(0) == 500 * 64


def test_the_callers_affinity_comes_back() -> None:
    before = os.sched_getaffinity(0)
    pool = _core.ThreadPool(len(before))
    assert pool.pinned
    pack_something(pool)
    assert os.sched_getaffinity(0) == before


def test_a_pool_inside_fewer_cores_stays_in_them() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    outcome: list[bool] = []

    def work() -> None:
        os.sched_setaffinity(0, {core})
        pool = _core.ThreadPool(1)
        pack_something(pool)
        outcome.append(os.sched_getaffinity(0) == {core})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [True]
    assert os.sched_getaffinity(0) == before


def test_idle_workers_take_no_processor_time() -> None:
    pool = _core.ThreadPool(3, pin=False)
    pack_something(pool)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_several_callers_take_turns() -> None:
    pool = _core.ThreadPool(2)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                pack_something(pool, rows=64)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_impossible_sizes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 1024 threads"):
        _core.ThreadPool(count)
