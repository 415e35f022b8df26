"""A server whose layers are on disk: what a damaged disk does to requests, and what it does not do to the server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.test_end_to_end import QUESTION, Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oag-") as name:
        place = ["--place", "layers.0-3=disk", "--offload-dir", f"{name}/disk", "--quant", "int8"]
        with running(Path(name), *place) as started:
            yield started


def test_a_damaged_disk_ends_requests_and_the_server_stays(server: Server) -> None:
    expected = server.chat()
    engine = server.children()["engine"]
    (path,) = (server.directory / "disk").iterdir()
    good = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(len(good)))
    body = {"messages": [QUESTION], "max_tokens": 8, "temperature": 0}
    for _ in range(3):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code in (500, 503)
        assert "checksum" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
    with path.open("r+b") as file:
        file.write(good)
    assert server.chat() == expected
    assert server.children()["engine"] == engine
