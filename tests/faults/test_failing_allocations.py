"""Allocations of loads and steps, and charges of a load fail, each in turn: a smaller retry or a typed error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.engine.assemble import EngineOptions, prepare
from openautoglm.errors import OutOfMemoryError
from openautoglm.executor.load import load_model
from openautoglm.families.registry import weight_map
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.spec.goal import Goal
from openautoglm.units import MIB

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "failing_allocations.so"
    source = HERE / "failing_allocations.cpp"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", *flags, str(source), "-o", str(path), "-ldl"], check=True)
    return path


def run_child(library: Path, work: str, directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.child", str(library), work, str(directory)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=HERE.parents[1], capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(("work", "least"), [("load", 100), ("pack", 100), ("restore", 100)])
def test_loads_whose_allocations_fail(library: Path, tmp_path: Path, work: str, least: int):
    result = run_child(library, work, tmp_path)
    # Every allocation of a load, however many there are; the last load of all had nothing left to fail.
    assert result["outcomes"] == {"OutOfMemoryError": result["reached"], "loaded": 1}
    assert result["reached"] >= least
    # What a load leaves behind is the allocator's own; a single layer of this model is larger than this.
    assert result["grown_bytes"] < MIB
    assert (result["left_files"], result["left_threads"]) == (0, 0)
    assert result["same_answer"]


def test_steps_whose_allocations_fail(library: Path, tmp_path: Path):
    result = run_child(library, "step", tmp_path)
    outcomes = result["outcomes"]
    assert set(outcomes) <= {"whole", "error"}, outcomes
    # A step that failed is tried again, smaller: nearly every request ends as if nothing had happened.
    assert outcomes["whole"] > 9 * outcomes.get("error", 0)
    assert result["reached"] >= 20
    assert result["used_blocks"] == 0


class FailingLedger(Ledger):
    """A ledger whose Nth charge finds no room."""

    def __init__(self, budget_bytes: int, number: int) -> None:
        super().__init__(budget_bytes)
        self.left = number

    def reserve(self, name: str, num_bytes: int) -> Reservation:
        self.left -= 1
        if self.left == 0:
            raise OutOfMemoryError(f"{name} finds no room")
        return super().reserve(name, num_bytes)


def test_a_load_whose_charges_fail():
    prepared = prepare(EngineOptions(model="demo", goal=Goal(context_tokens=64, concurrency=1), cache="off"))
    failed: list[str] = []
    for number in range(1, 200):
        ledger = FailingLedger(prepared.plan.budget_bytes, number)
        with Checkpoint.open(prepared.directory()) as checkpoint:
            shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
            weights = weight_map(prepared.spec, prepared.config, shapes)
            try:
                load_model(checkpoint, prepared.spec, weights, prepared.plan, ledger=ledger).close()
            except OutOfMemoryError as error:
                failed.append(str(error).removesuffix(" finds no room"))
        assert ledger.in_use_bytes == 0
        if ledger.left > 0:
            break
    assert failed == ["weights", "KV pool", "workspace"]
