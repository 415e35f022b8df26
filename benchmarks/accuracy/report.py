"""The rows of a run: kept while it goes on, and written as JSON and Markdown at its end."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accuracy.judge import MIB
from accuracy.shapes import Cell

Rows = dict[str, dict[str, Any]]
_FIGURES = ("weights", "kv", "workspace", "runtime", "peak")


def read_rows(file: Path) -> Rows:
    """Return the rows that an earlier run left, by the key of their cell."""
    if not file.is_file():
        return {}
    lines = (json.loads(line) for line in file.read_text().splitlines())
    return {line["key"]: line["row"] for line in lines}


def add_row(file: Path, key: str, row: dict[str, Any]) -> None:
    """Keep a row, so that an interrupted run goes on behind it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        handle.write(json.dumps({"key": key, "row": row}) + "\n")


def write_report(cells: list[Cell], rows: Rows, processor: str, results: Path, name: str) -> None:
    """Write the JSON (every cell, bytes) and the Markdown (a line per shape and formats)."""
    results.mkdir(exist_ok=True)
    columns = ["shape", "weights", "kv", "context_tokens", "concurrency"]
    columns += [f"{side}_{figure}_bytes" for figure in _FIGURES for side in ("planned", "measured")] + ["missed"]
    table = [_flat(cell, rows[cell.key]) for cell in cells]
    date = datetime.now(UTC).date().isoformat()
    lines = ",\n".join(json.dumps(line) for line in table)
    head = json.dumps({"date": date, "processor": processor, "columns": columns})
    (results / f"{name}.json").write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
    (results / f"{name}.md").write_text(_markdown(cells, rows, date, processor))


def _flat(cell: Cell, row: dict[str, Any]) -> list[object]:
    figures = [row[side][figure] for figure in _FIGURES for side in ("planned", "measured")]
    return [cell.shape, cell.weights, cell.kv, cell.context_tokens, cell.concurrency, *figures, row["missed"]]


def _markdown(cells: list[Cell], rows: Rows, date: str, processor: str) -> str:
    missed = [cell for cell in cells if rows[cell.key]["missed"]]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell.shape, cell.weights, cell.kv].append(rows[cell.key])
    lines = [
        "# Plan accuracy",
        "",
        f"{date}, {processor}: {len(cells)} loads, each in a fresh process, pool fully touched, a step of the largest "
        f"size; {len(missed)} miss a bar. Ranges over {len({(c.context_tokens, c.concurrency) for c in cells})} pairs "
        "of context and concurrency, in MiB (planned less measured, so that below zero would be an under-prediction; "
        "errors of weights, KV cache and workspace are the largest, in per cent). The peak is the process tree's.",
        "",
        "| shape | weights | KV | cells | error of weights | of KV | of workspace | runtime, planned less measured "
        "| peak, measured | peak, planned less measured | bars |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (shape, weights, kv), group in groups.items():
        errors = [f"{max(_error(row, name) for row in group):.3f} %" for name in ("weights", "kv", "workspace")]
        peaks = _range([row["measured"]["peak"] / MIB for row in group])
        differences = [_range([_difference(row, name) for row in group], sign=True) for name in ("runtime", "peak")]
        wrong = sorted({bar for row in group for bar in row["missed"]})
        cells_ = [shape, weights, kv, str(len(group)), *errors, differences[0], peaks, differences[1]]
        lines.append(f"| {' | '.join([*cells_, '; '.join(wrong) or 'met'])} |")
    return "\n".join(lines) + "\n"


def _error(row: dict[str, Any], name: str) -> float:
    planned, measured = row["planned"][name], row["measured"][name]
    return 100 * abs(planned - measured) / measured


def _difference(row: dict[str, Any], name: str) -> float:
    return float(row["planned"][name] - row["measured"][name]) / MIB


def _range(values: list[float], *, sign: bool = False) -> str:
    low, high = min(values), max(values)
    texts = [f"{value:+,.1f}" if sign else f"{value:,.0f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)
