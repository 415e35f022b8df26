"""Text for the demo model: what ships with CPython, split once into training and held-out files.

A *document* is the text of one standard-library module, or one of pydoc's topic pages. A *conversation* is a list
of (role, text) turns made from documentation strings (see `demo_conversations`). The split hangs on a hash of the
path only, so that every machine and every run holds out the same files; held-out files give neither documents
nor conversations to training.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PERCENT = 3
SPLIT_SALT = "openautoglm-demo-1"
EXCLUDED_PARTS = frozenset({"site-packages", "__pycache__", "idle_test", "lib2to3", "pydoc_data", "lib-dynload"})
TEST_PARTS = frozenset({"test", "tests"})
MAX_DOCUMENT_BYTES = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text with the path (relative to the standard library, '/' as separator) that names it."""

    path: str
    text: str
    held_out: bool
    is_test: bool

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8"))


def is_held_out(path: str) -> bool:
    """Whether `path` (relative, '/' separated) belongs to the held-out set; a pure function of the path."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{path}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _read_source(path: Path) -> str | None:
    """Decode a module by its own encoding declaration; None for the few test files that are broken on purpose."""
    try:
        with tokenize.open(path) as stream:
            return stream.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _is_table(text: str) -> bool:
    """Generated code tables (the charmap codecs, build variables) teach a language model nothing."""
    return "decoding_table" in text or "build_time_vars" in text or len(text) > MAX_DOCUMENT_BYTES


def library_documents(*, with_tests: bool) -> list[Document]:
    """The running interpreter's standard library, sorted by path; peak memory is about twice the text (60 MB)."""
    root = Path(sysconfig.get_path("stdlib"))
    documents: list[Document] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = set(relative.parts[:-1])
        is_test = bool(parts & TEST_PARTS)
        if parts & EXCLUDED_PARTS or (is_test and not with_tests):
            continue
        text = _read_source(path)
        if text is None or not text.strip() or _is_table(text):
            continue
        name = relative.as_posix()
        # Only library modules are measured: test files are extra training text, never part of the yardstick.
        held_out = not is_test and is_held_out(name)
        documents.append(Document(path=name, text=text, held_out=held_out, is_test=is_test))
    return documents


def topic_documents() -> list[Document]:
    """pydoc's help topics (the language reference in plain text), read as data and never executed."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    topics = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    pages: dict[str, str] = ast.literal_eval(topics)
    return [
        Document(path=f"pydoc_data/topics/{name}", text=text, held_out=False, is_test=False)
        for name, text in sorted(pages.items())
    ]
