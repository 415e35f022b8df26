"""Profiles of a running server: only for admins, of both processes, bounded, and as files that tools read."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.test_end_to_end import Server, running

CANARY = "kanarienvogel"
HEADERS = {"Authorization": "Bearer adm"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that generates text for as long as the tests run."""
    directory = tmp_path_factory.mktemp("profiled")
    stop = threading.Event()
    with running(directory, "--admin-key", "adm", "--context", "1024") as server:

        def ask() -> None:
            body = {"prompt": CANARY, "max_tokens": 200, "ignore_eos": True}
            while not stop.is_set():
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

        client = threading.Thread(target=ask)
        client.start()
        yield server
        stop.set()
        client.join()


def profile(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openautoglm", "profile", "--url", server.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_both_processes_are_told_at_work(busy: Server, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    arguments = ("--admin-key", "adm", "--seconds", "1", "--format", "speedscope", "--output", str(file))
    done = profile(busy, *arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    told = json.loads(file.read_text())
    assert [each["name"].split()[0] for each in told["profiles"]] == ["engine", "http"]
    names = {frame["name"] for frame in told["shared"]["frames"]}
    assert {"openautoglm.engine.engine:Engine.step", "uvicorn.server:Server.serve"} & names
    assert "openautoglm.engine.engine:Engine.step" in names
    assert CANARY not in file.read_text()


def test_only_admins_may_ask_and_only_for_so_much(busy: Server) -> None:
    url = f"{busy.url}/admin/profile"
    assert httpx.post(url, json={}).status_code == 401
    for body in ({"seconds": 61}, {"seconds": 0}, {"rate_hz": 201}, {"rate_hz": 0}, {"seconds": "1"}, []):
        assert httpx.post(url, json=body, headers=HEADERS).status_code == 400, body
    wrong = profile(busy, "--admin-key", "wrong")
    assert wrong.returncode == 1
    assert "key" in wrong.stderr
    assert profile(busy, "--seconds", "61").returncode == 2


def test_a_second_profile_is_refused_while_one_is_taken(busy: Server) -> None:
    codes: list[int] = []

    def ask() -> None:
        answer = httpx.post(f"{busy.url}/admin/profile", json={"seconds": 1}, headers=HEADERS, timeout=30)
        codes.append(answer.status_code)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(codes) == [200, 429]
