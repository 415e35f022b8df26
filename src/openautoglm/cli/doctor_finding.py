"""One line of `openautoglm doctor` and its advice."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was checked: `status` is "ok", "warning" or "problem"; `advice` says what to do, or nothing."""

    name: str
    status: str
    found: str
    advice: str


def finding(name: str, found: str, advice: str, status: str = OK) -> Finding:
    """Return a finding; all is well unless `status` says otherwise."""
    return Finding(name=name, status=status, found=found, advice=advice)
