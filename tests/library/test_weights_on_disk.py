"""The library with layers on disk: the same text, and errors of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import openautoglm
from openautoglm import LLM, SamplingParams
from openautoglm.engine import weights_on_disk
from openautoglm.errors import ConfigError, DoesNotFitError, EngineError

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
PROMPT = "def main():"


@pytest.fixture(scope="module")
def expected() -> str:
    with LLM("demo", quant="int8", context=512, concurrency=4) as llm:
        return llm.generate(PROMPT, GREEDY)[0].text


def open_on_disk(directory: Path, **settings: object) -> LLM:
    wishes = {"quant": "int8", "context": 512, "concurrency": 4, "place": "layers.1-3=disk", **settings}
    return LLM("demo", offload_dir=str(directory), **wishes)  # type: ignore[arg-type]


def test_layers_on_disk_give_the_same_text(tmp_path: Path, expected: str):
    for _ in range(2):  # packed and written, then read
        with open_on_disk(tmp_path) as llm:
            assert llm.generate(PROMPT, GREEDY)[0].text == expected
            assert llm.plan.offload is not None
            assert llm.plan.offload.layers == (1, 2, 3)
            assert "direct" in llm.receipt
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".packed"


def test_without_a_cache_nothing_is_left(tmp_path: Path, expected: str):
    with open_on_disk(tmp_path, cache="off") as llm:
        assert list(tmp_path.iterdir()) == []
        assert llm.generate(PROMPT, GREEDY)[0].text == expected


# Killed in the middle of its load, as by the system that is short of memory.
KILLED = """
import os, signal, sys
from openautoglm.engine.assemble import open_engine, prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import parse_placement
goal = Goal(context_tokens=512, placement=parse_placement("layers.1-3=disk"), offload_directory=sys.argv[1])
def progress(news):
    if news.stage == "load" and news.done_bytes > news.total_bytes // 2:
        os.kill(os.getpid(), signal.SIGKILL)
open_engine(prepare(EngineOptions(model="demo", goal=goal, cache="off")), progress=progress)
"""


def test_what_a_killed_load_left_goes_at_the_next_start(tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("offload-")
    assert sum(path.stat().st_size for path in left.iterdir()) > 1 << 20
    with open_on_disk(tmp_path, cache="off"):
        assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is kept spare is raised to more than any disk has: the disk itself stays as it is."""
    monkeypatch.setattr(weights_on_disk, "SPARE_DISK_BYTES", 1 << 62)
    with pytest.raises(DoesNotFitError, match="can take 0 B"):
        open_on_disk(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_ends_the_request_and_no_more(tmp_path: Path, expected: str):
    with open_on_disk(tmp_path) as llm:
        (path,) = tmp_path.iterdir()
        good = path.read_bytes()
        with path.open("r+b") as file:
            file.write(bytes(len(good)))
        for _ in range(2):
            with pytest.raises(EngineError, match="checksum"):
                llm.generate(PROMPT, GREEDY)
        with path.open("r+b") as file:
            file.write(good)
        assert llm.generate(PROMPT, GREEDY)[0].text == expected


def test_a_budget_below_the_weights_is_met(expected: str):
    whole = openautoglm.plan("demo", quant="int8", context=256, concurrency=1, offload="none")
    short = whole.breakdown.total_bytes - (3 << 20)  # shorter steps save two of them
    with LLM("demo", quant="int8", context=256, concurrency=1, memory=short) as llm:
        assert llm.plan.offload is not None
        assert llm.plan.breakdown.total_bytes <= short
        assert llm.generate(PROMPT, GREEDY)[0].text == expected
    with pytest.raises(DoesNotFitError, match="layers on disk"):
        openautoglm.plan("demo", quant="int8", context=256, concurrency=1, memory=short, offload="none")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offload": "gpu"}, "offload is auto, disk or none"),
        ({"place": "layers.77=disk"}, "layers 0-4"),
        ({"place": "embedding=disk"}, "only layers have places"),
        ({"place": 3}, "must be text"),
        ({"offload_dir": 3, "place": "layers.1=disk"}, "must be text"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        LLM("demo", **settings)  # type: ignore[arg-type]
