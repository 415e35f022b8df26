"""Engines that are killed or stopped at random moments, and servers that are told to end twice."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_kills import children, serve_and_end
from openautoglm.serve.supervise import MAX_FAILED_STARTS
from tests.serve.test_end_to_end import directory, running
from tests.serve.test_leaving import send, within

__all__ = ["directory"]


def test_engines_that_are_killed_or_stopped_are_replaced_and_nothing_is_left() -> None:
    """Not ready at once, requests end with an error, the same answers soon after; see `benchmarks/engine_kills.py`."""
    with ThreadPoolExecutor(2) as pool:
        # Side by side, as a stopped engine takes eight seconds to be found.
        killed = pool.submit(serve_and_end, "demo", [signal.SIGKILL] * 3, 5)
        stopped = pool.submit(serve_and_end, "demo", [signal.SIGSTOP], 6)
        for result, name in ((killed, "SIGKILL"), (stopped, "SIGSTOP")):
            _, ends, problems = result.result()
            assert not problems
            assert {end.signal for end in ends} == {name}
            # It was under load: the signals did end requests.
            assert sum(end.codes.get("engine_unavailable", 0) for end in ends) >= len(ends)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_kills() -> None:
    _, ends, problems = serve_and_end("demo", [signal.SIGKILL] * 100, 7)
    assert not problems
    assert len(ends) == 100


def test_an_engine_that_never_comes_up_again_ends_the_server(directory: Path) -> None:
    """Each new engine is killed while it loads: five times in a row is the end, and the exit code says so."""
    with running(directory) as server:
        server.chat()
        deadline = time.monotonic() + 60
        killed = set[int]()
        while server.process.poll() is None:
            assert time.monotonic() < deadline
            for pid, name in children(server.process.pid).items():
                if name == "engine.worker" and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        assert server.process.returncode == 1
    # The first one served; the rest never did.
    assert len(killed) == 1 + MAX_FAILED_STARTS
    assert "giving up" in server.errors.read_text()
    assert [path.name for path in directory.iterdir()] == ["stderr"]


def test_a_second_signal_ends_it_at_once(directory: Path) -> None:
    with running(directory) as server, send(server, prompt="def ", max_tokens=2000, n=8) as connection:
        assert connection.recv(1)
        server.process.terminate()
        within(10, lambda: "finishing 1 requests" in server.errors.read_text())
        begin = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(20)
        assert time.monotonic() - begin < 3
    assert [path.name for path in directory.iterdir()] == ["stderr"]


def test_sigterm_while_the_engine_is_started_again_waits_for_no_load(directory: Path) -> None:
    with running(directory) as server:
        old = server.children()["engine"]
        os.kill(old, signal.SIGKILL)
        new: list[int] = []

        def loading() -> bool:
            new[:] = [pid for pid, name in children(server.process.pid).items() if name == "engine.worker"]
            return bool(new) and new != [old]

        within(10, loading)
        # Stopped, so that its load would never end.
        os.kill(new[0], signal.SIGSTOP)
        begin = time.monotonic()
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert time.monotonic() - begin < 5
    assert not Path(f"/proc/{new[0]}").exists()
    assert [path.name for path in directory.iterdir()] == ["stderr"]
