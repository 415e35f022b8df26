"""Another process takes 30 % of the memory beside a serving server: rungs, no crash, the same answers, and recovery."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from overload.clients import Outcome, overload
from overload.server import read_metrics, wait_until_idle
from tests.cgroup.memory_group import MemoryGroup
from tests.cgroup.served import Served, planned_bytes, served

pytestmark = pytest.mark.cgroup

HOG = Path(__file__).with_name("hog.py")
CONTEXT, CONCURRENCY = 512, 14
SETTINGS = ["--context", str(CONTEXT), "--concurrency", str(CONCURRENCY), "--max-running", "8", "--max-queued", "24",
            "--quant", "int8", "--kv", "bf16"]  # fmt: skip
SHARE = 0.30
TAKING_SECONDS = 3.0
RECOVERY_SECONDS = 30.0
ADMIN = {"authorization": "Bearer admin-of-the-test"}
PROMPTS = [[300 + 7 * index + step for step in range(40 * index + 20)] for index in range(4)]


def answers(url: str) -> list[str]:
    """Greedy answers to fixed prompts: what must not change, whatever the memory."""
    bodies = [{"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True} for prompt in PROMPTS]
    texts = []
    for body in bodies:
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
        while answer.status_code in (429, 503):
            assert answer.json()["error"]["type"]
            time.sleep(0.1)
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
        texts.append(answer.json()["choices"][0]["text"])
    return texts


@contextlib.contextmanager
def hog(group: MemoryGroup, num_bytes: int) -> Iterator[None]:
    """Hold so many bytes in the group while the block runs, once they are all taken."""
    command = [sys.executable, str(HOG), str(num_bytes), str(TAKING_SECONDS)]
    with group.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.communicate()
        assert process.returncode == 0


@contextlib.contextmanager
def loaded(url: str) -> Iterator[Outcome]:
    """Ask more than the server can do while the block runs; the outcome is whole after it."""
    outcome, stop = Outcome(), threading.Event()
    clients = threading.Thread(
        target=overload,
        args=(url,),
        kwargs={
            "num_clients": 24, "context_tokens": CONTEXT, "most_new_tokens": 24, "outcome": outcome, "stop": stop,
        },
    )  # fmt: skip
    clients.start()
    try:
        yield outcome
    finally:
        stop.set()
        clients.join()


def wait_until(condition: object, seconds: float, what: str) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def memory(url: str) -> dict[str, object]:
    report: dict[str, object] = httpx.get(f"{url}/admin/memory", headers=ADMIN, timeout=30).json()
    return report


def touched_request(url: str) -> dict[str, object]:
    """Ask until an answer says that the ladder touched it; return what explains it."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        body = {"prompt": PROMPTS[3], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
        if answer.status_code == 200 and "ladder" in answer.json().get("openautoglm", {}):
            explained: dict[str, object] = httpx.get(f"{url}/v1/requests/{answer.json()['id']}/explain").json()
            return explained
    raise AssertionError("no request was touched by the ladder")


def test_a_hog_costs_rungs_and_nothing_else(wide_model: Path):
    budget = planned_bytes(str(wide_model), context=CONTEXT, concurrency=CONCURRENCY, quant="int8", kv="bf16")
    arguments = [*SETTINGS, "--memory", str(budget), "--admin-key", ADMIN["authorization"].split()[1]]
    with served(str(wide_model), *arguments, limit_bytes=budget) as running:
        before = answers(running.url)
        planned = memory(running.url)["pool_blocks"]
        with loaded(running.url) as outcome:
            wait_until(lambda: running.group.used_bytes() > 0.8 * budget, 60, "the pool does not fill")
            with hog(running.group, int(SHARE * budget)):
                assert check_rungs(running)["pool_blocks"] < planned
                assert answers(running.url) == before
        assert outcome.faults == []
        assert outcome.statuses[200] >= 10
        wait_until_idle(running.url)
        wait_until(lambda: memory(running.url)["rung"] == "none", RECOVERY_SECONDS, "the ladder stays")
        wait_until(lambda: memory(running.url)["pool_blocks"] == planned, RECOVERY_SECONDS, "the pool stays small")
        assert answers(running.url) == before
        assert running.group.num_kills() == 0
        assert running.process.poll() is None
    assert any("memory ladder: leaves drop_prefix" in line for line in running.log)


def check_rungs(running: Served) -> dict[str, object]:
    """Check that metrics, log, and the explanation of a request tell of the ladder; return the report of memory."""
    metrics = read_metrics(running.url)
    assert metrics["openautoglm_ladder_rung_transitions_total:drop_prefix"] >= 1
    assert any("memory ladder: enters drop_prefix" in line for line in running.log)
    explained = touched_request(running.url)
    assert explained["requests"][0]["rungs"]  # type: ignore[index]
    return memory(running.url)
