"""Spilling in a server whose disk really becomes full: one warning, the same answers, and nothing killed."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cgroup.served import Served, served

pytestmark = pytest.mark.cgroup

MIB = 1 << 20
LIMIT_BYTES = 260 * MIB
NUM_CLIENTS = 16
SETTINGS = ("--memory", str(LIMIT_BYTES) + "B", "--context", "512", "--concurrency", "4", "--max-running", "32")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 24 MiB large."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def ask(server: Served, number: int) -> list[str]:
    prompt = f"# file {number}\nimport os\nclass Thing{number}:\n    def __init__(self):\n" * 5
    body = {
        "model": "demo",
        "prompt": prompt,
        "max_tokens": 280,
        "temperature": 0.8,
        "seed": number,
        "n": 1 + number % 2,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return [choice["text"] for choice in json.load(reply)["choices"]]


def ask_all(server: Served) -> list[list[str]]:
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return list(pool.map(lambda number: ask(server, number), range(NUM_CLIENTS)))


def metrics(server: Served) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        lines = [line.split() for line in reply.read().decode().splitlines() if not line.startswith("#")]
    found: dict[str, float] = {}
    for *name, value in lines:
        found[" ".join(name).split("{")[0]] = float(value)
    return found


def fill(directory: Path) -> None:
    with (directory / "others").open("wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass


def test_a_full_disk_ends_spilling_and_nothing_else(small_disk: Path) -> None:
    spill = ("--spill-disk", "16MiB", "--spill-dir", str(small_disk / "spill"))
    with served("demo", *SETTINGS, *spill, limit_bytes=LIMIT_BYTES) as server:
        fill(small_disk)
        answers = ask_all(server)
        found = metrics(server)
        assert server.group.num_kills() == 0
    assert found["vllm:num_preemptions_total"] > 0
    assert found["openautoglm_recomputed_tokens_total"] > 0
    assert (found["openautoglm_spill_errors_total"], found["openautoglm_restored_blocks_total"]) == (1, 0)
    (warning,) = [line for line in server.log if "no longer spilled" in line]
    assert "No space left on device" in warning
    with served("demo", *SETTINGS, limit_bytes=LIMIT_BYTES) as server:
        assert ask_all(server) == answers


def test_spilled_blocks_are_within_the_budget(tmp_path: Path) -> None:
    spill = ("--spill-memory", "2MiB", "--spill-disk", "16MiB", "--spill-dir", str(tmp_path))
    with served("demo", *SETTINGS, *spill, limit_bytes=LIMIT_BYTES) as server:
        ask_all(server)
        found = metrics(server)
        assert server.group.num_kills() == 0
        assert list(tmp_path.iterdir()) == []
    assert found["openautoglm_restored_blocks_total"] > 0
    assert found["openautoglm_spill_errors_total"] == 0
    assert server.demand_bytes < LIMIT_BYTES
    assert server.pss_bytes < LIMIT_BYTES
