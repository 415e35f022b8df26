"""Modules stay within 400 lines and functions within 60, so that a stranger finds the room for any line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES = 400
FUNCTION_LINES = 60
SOURCES = sorted(
    path
    for folder in ("src", "tools", "benchmarks")
    for suffix in ("*.py", "*.cpp", "*.h")
    for path in (ROOT / folder).rglob(suffix)
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short(path: Path):
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_functions_are_short(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
