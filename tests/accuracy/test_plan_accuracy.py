"""A few cells of the accuracy matrix, each in a fresh process as in the whole; and the bars can be missed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from accuracy.judge import judge, run_cell
from accuracy.report import add_row, read_rows, write_report
from accuracy.shapes import CONCURRENCIES, CONTEXTS, KV_FORMATS, MATRIX_SHAPES, WEIGHT_FORMATS, Cell, matrix_cells

TINY, SMALL = "Qwen3-8B, sixteenth width, 8 layers", "glm-4-9b-chat, eighth width, 6 layers"
CELLS = [
    Cell(shape=TINY, weights="int4", kv="int8", context_tokens=256, concurrency=1),
    Cell(shape=TINY, weights="int8", kv="bf16", context_tokens=4096, concurrency=4),
    Cell(shape=SMALL, weights="bf16", kv="int8", context_tokens=1024, concurrency=4),
    Cell(shape=SMALL, weights="nf4", kv="bf16", context_tokens=1024, concurrency=16),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accuracy")


@pytest.fixture(scope="module")
def rows(work: Path) -> dict[str, dict[str, Any]]:
    return {cell.key: run_cell(cell, work) for cell in CELLS}


def test_the_matrix_is_as_large_as_promised():
    assert len(MATRIX_SHAPES) >= 8
    assert (len(WEIGHT_FORMATS), len(KV_FORMATS), len(CONTEXTS), len(CONCURRENCIES)) == (4, 2, 3, 3)
    assert len({cell.key for cell in matrix_cells()}) == len(MATRIX_SHAPES) * 4 * 2 * 3 * 3


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_a_load_meets_every_bar(rows: dict[str, dict[str, Any]], cell: Cell):
    row = rows[cell.key]
    assert row["missed"] == []
    # Not by chance: the pool was written, so that the peak holds all arrays.
    measured = row["measured"]
    assert measured["peak"] > measured["weights"] + measured["kv"] + measured["workspace"]


def test_each_bar_can_be_missed(rows: dict[str, dict[str, Any]]):
    row = rows[CELLS[0].key]

    def missed(side: str, name: str, change: float) -> list[str]:
        changed = copy.deepcopy(row)
        changed[side][name] = int(changed[side][name] + change)
        return judge(changed)

    assert judge(row) == []
    for name in ("weights", "kv", "workspace"):
        assert missed("planned", name, 0.011 * row["measured"][name])
        assert missed("planned", name, -0.011 * row["measured"][name])
    for name in row["measured_parts"]:
        assert missed("measured_parts", name, 0.02 * row["measured_parts"][name] + 1)
    for name in ("peak", "runtime"):
        assert missed("measured", name, row["planned"][name] - row["measured"][name] + 1)
    assert missed("measured", "peak", row["planned"]["peak"] - row["measured"]["peak"] - (49 << 20))
    changed = {**row, "num_blocks": row["num_blocks"] + 1}
    assert judge(changed)


def test_a_run_goes_on_where_it_stopped_and_reports_every_cell(rows: dict[str, dict[str, Any]], tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == {}
    for cell in CELLS:
        add_row(file, cell.key, rows[cell.key])
    kept = read_rows(file)
    assert kept == rows
    kept[CELLS[0].key]["missed"] = ["peak 1.0 MiB below the measured one"]
    write_report(CELLS, kept, "a processor", tmp_path, "report")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line[:5] for line in report["rows"]] == [
        [cell.shape, cell.weights, cell.kv, cell.context_tokens, cell.concurrency] for cell in CELLS
    ]
    assert len(report["columns"]) == len(report["rows"][0])
    text = (tmp_path / "report.md").read_text()
    assert "4 loads" in text
    assert "1 miss a bar" in text
    assert "below the measured one" in text
