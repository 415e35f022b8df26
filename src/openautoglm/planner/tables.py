"""Aligned plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, others that hold figures to the right, settings to the left."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    left = [index == 0 or not any(_is_figure(row[index]) for row in cells) for index in range(len(widths))]
    return [
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_figure(cell: str) -> bool:
    return cell.endswith(("iB", " B", "%"))
