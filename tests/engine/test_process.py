"""`EngineProcess`: a real child process that starts, fails, dies, is stopped, and loses its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.process import EngineProcess
from openautoglm.errors import DoesNotFitError, EngineError
from openautoglm.progress import Progress
from openautoglm.spec.goal import Goal
from tests.engine.history_executor import isolated
from tests.engine.test_local import collect, drain, make

WORKER = (sys.executable, str(Path(__file__).with_name("history_worker.py")))


def process(model: str) -> EngineProcess:
    options = EngineOptions(model=model, goal=Goal(memory_bytes=1 << 30), max_queued=5)
    return EngineProcess(options, command=WORKER)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_worker_serves_and_leaves_nothing_behind() -> None:
    news: list[Progress] = []
    with process("history") as engine:
        assert not engine.alive
        description = engine.start(progress=news.append)
        assert (description.model, description.max_queued_requests) == ("history", 5)
        assert news == [Progress(stage="load", done_bytes=done, total_bytes=2) for done in (1, 2)]
        directory = engine.socket_path.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(engine.socket_path.stat().st_mode) == 0o600
        assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}

        async def main() -> None:
            client = engine.client()
            requests = [make(name, n=2, temperature=1.0) for name in ("a", "b", "c")]
            collectors = await asyncio.gather(*(collect(client.generate(request)) for request in requests))
            for request, collector in zip(requests, collectors, strict=True):
                for choice in (0, 1):
                    expected = isolated(request, choice, context_tokens=512)
                    assert collector.outcomes[request.request_id, choice] == expected
            assert (await client.status()).heartbeat <= engine.heartbeat
            await client.close()

        asyncio.run(main())
        beats = engine.heartbeat
        wait_until(lambda: engine.heartbeat > beats)
        pid = engine.pid
        assert pid is not None
        assert engine.stop() == 0
        assert not engine.socket_path.exists()
    assert gone(pid)
    assert not directory.exists()


def test_the_workers_own_error_comes_out() -> None:
    with process("does not fit") as engine:
        with pytest.raises(DoesNotFitError, match="too big") as error:
            engine.start()
        assert error.value.suggestions == ("--memory 1TiB",)
        assert not engine.alive


def test_a_crash_while_loading() -> None:
    with process("crashes") as engine, pytest.raises(EngineError, match="exit status 7"):
        engine.start()


def test_a_hang_while_loading_is_noticed_and_a_slow_load_is_not_one() -> None:
    with process("hangs") as engine:
        with pytest.raises(EngineError, match=r"no sign of life for 2 s"):
            engine.start(stalled_seconds=2.0)
        assert not engine.alive
    with process("beats") as engine:
        assert engine.start(stalled_seconds=2.0).model == "beats"


@pytest.mark.parametrize("model", ["dies", "fails"])
def test_when_the_worker_dies_requests_end_and_a_new_one_serves_the_same_client(model: str) -> None:
    with process(model) as engine:
        engine.start()
        first = engine.pid

        async def main() -> None:
            client = engine.client()
            readers = [collect(client.generate(make(name, max_tokens=100))) for name in ("a", "b")]
            results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 20)
            assert {type(result) for result in results} == {EngineError}
            await asyncio.to_thread(wait_until, lambda: not engine.alive)
            with pytest.raises(EngineError):
                await client.status()
            await asyncio.to_thread(engine.start)
            short = make("c", max_tokens=3)
            assert (await collect(client.generate(short))).outcomes["c", 0] == isolated(short, 0, context_tokens=512)
            await client.close()

        asyncio.run(main())
        assert engine.pid != first


def test_killed_in_the_middle() -> None:
    with process("slow") as engine:
        engine.start()

        async def main() -> None:
            client = engine.client()
            stream = client.generate(make("a", max_tokens=400))
            await anext(stream)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="the engine is gone"):
                await drain(stream)
            await client.close()

        asyncio.run(main())
        wait_until(lambda: not engine.alive)
        assert engine.stop() == -signal.SIGKILL


def test_sigterm_is_a_good_end_and_ctrl_c_is_the_parents() -> None:
    with process("slow") as engine:
        engine.start()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGINT)
        time.sleep(0.3)
        assert engine.alive
        os.kill(engine.pid, signal.SIGTERM)
        wait_until(lambda: not engine.alive)
        assert not engine.socket_path.exists()
        assert engine.stop() == 0


def test_starting_twice_is_refused() -> None:
    with process("history") as engine:
        engine.start()
        with pytest.raises(EngineError, match="runs already"):
            engine.start()


PARENT = """
import sys, time, os, threading
sys.path.insert(0, {root!r})
from tests.engine.test_process import process
engine = process({model!r})
def start():
    engine.start()
    print(engine.pid, engine.socket_path.parent, flush=True)
if {model!r} == "hangs":
    threading.Thread(target=start, daemon=True).start()
    while engine.pid is None or engine.heartbeat < 2:
        time.sleep(0.01)
    print(engine.pid, engine.socket_path.parent, flush=True)
else:
    thread = threading.Thread(target=start)  # the thread that starts the worker ends long before the process
    thread.start()
    thread.join()
time.sleep(600)
"""


@pytest.mark.parametrize("model", ["history", "hangs"])
def test_the_worker_ends_when_its_parent_is_killed(model: str) -> None:
    script = PARENT.format(root=str(Path(__file__).resolve().parents[2]), model=model)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        time.sleep(0.5)
        assert not gone(int(pid)), "the end of the starting thread is not the end of the parent"
        parent.kill()
        wait_until(lambda: gone(int(pid)))
        wait_until(lambda: not Path(directory).exists())


def test_a_long_temporary_directory_gets_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with process("history") as engine:
        assert len(str(engine.socket_path)) < 108
        engine.start()


def test_a_heartbeat_is_private_and_never_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    with Heartbeat(path, create=True) as ours, Heartbeat(path) as theirs:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        theirs.beat()
        theirs.beat()
        assert ours.value == 2
        with pytest.raises(FileExistsError):
            Heartbeat(path, create=True)
