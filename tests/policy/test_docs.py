"""The documents name files and tests that are there. The log and the change log tell of what was, and are left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HISTORY = {"docs/log.md", "CHANGELOG.md"}
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    if str(path.relative_to(ROOT)) not in HISTORY
)
NAMED = re.compile(r"(?<![\w/.-])((?:src|tests|benchmarks|tools|docs)/[\w./-]*\w(?![\w*]))(?:::(\w+))?")


def missing(text: str) -> list[str]:
    """Return the files, directories and tests that `text` names and that are not there."""
    found = []
    for path, test in NAMED.findall(text):
        at = ROOT / path
        if not at.exists() or (test and f"def {test}(" not in at.read_text()):
            found.append(f"{path}::{test}" if test else path)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    assert missing((ROOT / document).read_text()) == []


def test_what_is_not_there_is_found() -> None:
    here = "tests/policy/test_docs.py"
    assert missing(f"`{here}`, `tests/policy/` and `{here}::test_what_is_not_there_is_found`") == []
    gone = ["tests/gone.py", f"{here}::test_gone"]
    assert missing(f"`{gone[0]}` and `{gone[1]}`") == gone
