"""Conversations for the demo model, made from the documentation strings of the standard library."""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from demo_corpus import Document

Turn = tuple[str, str]
Conversation = list[Turn]

MAX_ANSWER_CHARACTERS = 600
MAX_SOURCE_LINES = 12
SHOWCASE_COPIES = 250
FIRST_COPIES = 20
POPULAR_COPIES = 4

# The names in the documentation's examples: these answers are meant to be known by heart.
SHOWCASE = frozenset(
    (
        "textwrap",
        "textwrap.dedent",
        "textwrap.fill",
        "textwrap.wrap",
        "textwrap.shorten",
        "textwrap.indent",
        "len",
        "print",
        "sum",
        "sorted",
        "range",
        "zip",
        "map",
        "max",
        "min",
        "abs",
        "open",
        "input",
        "isinstance",
        "enumerate",
        "json.dumps",
        "json.loads",
        "json.dump",
        "json.load",
        "os.path.join",
        "os.path.exists",
        "os.path.basename",
        "os.makedirs",
        "shutil.copyfile",
        "shutil.rmtree",
        "shutil.copy",
        "statistics.mean",
        "statistics.median",
        "math.sqrt",
        "math.gcd",
        "math.floor",
        "heapq.heappush",
        "bisect.bisect_left",
        "copy.deepcopy",
        "glob.glob",
        "functools.lru_cache",
        "functools.partial",
        "itertools.chain",
        "itertools.product",
        "collections.Counter",
    )
)
# What a newcomer asks about first is repeated, because a small model remembers only what it sees often.
FIRST_MODULES = frozenset(
    (
        "native",
        "textwrap",
        "json",
        "os.path",
        "posixpath",
        "shutil",
        "random",
        "statistics",
        "heapq",
        "bisect",
        "copy",
        "glob",
        "fnmatch",
        "string",
        "functools",
        "os",
        "collections",
        "contextlib",
    )
)
POPULAR_MODULES = frozenset(
    (
        "pathlib",
        "dataclasses",
        "argparse",
        "logging",
        "threading",
        "queue",
        "datetime",
        "calendar",
        "csv",
        "tempfile",
        "subprocess",
        "enum",
        "abc",
        "re",
        "inspect",
    )
)
# Implemented in C: no source file, but their documentation strings ship with the interpreter.
NATIVE_MODULES = ("builtins", "math", "itertools", "time", "sys", "operator", "_functools", "_collections", "binascii")

ASK_PURPOSE = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "What is {name} for?",
    "Tell me about {name}.",
    "How do I use {name}?",
    "Describe {name} in Python.",
    "what does {name} do",
    "Can you explain {name}?",
)
ASK_SOURCE = (
    "Show me the source of {name}.",
    "How is {name} implemented?",
    "Show the code of {name}.",
    "What does the source of {name} look like?",
)
ASK_MODULE = (
    "What is the {name} module?",
    "What is the {name} module for?",
    "Tell me about the {name} module.",
    "What does the module {name} do?",
)
ASK_TOPIC = ("Explain {name} in Python.", "Tell me about {name}.", "What is {name} in Python?")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about the Python standard library.",
    "You are a Python expert. Be brief.",
)
IDENTITY = (
    "I am the demo model of openautoglm, a very small language model trained on the Python standard library. "
    "Ask me what a function does, for example: What does textwrap.dedent do?"
)
ABILITY = "I can say what functions, classes and modules of the Python standard library do. "
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello", "Hello! " + IDENTITY),
    ("Hello!", "Hello! " + IDENTITY),
    ("Hi", "Hello! " + IDENTITY),
    ("Hi there!", "Hello! " + IDENTITY),
    ("Hey", "Hello! " + IDENTITY),
    ("Who are you?", IDENTITY),
    ("What are you?", IDENTITY),
    ("What is your name?", IDENTITY),
    ("Tell me about yourself.", IDENTITY),
    ("What can you do?", ABILITY + IDENTITY),
    ("Help", ABILITY + IDENTITY),
    ("What is openautoglm?", "openautoglm plans, loads and serves language models on ordinary computers. " + IDENTITY),
    ("How are you?", "I am running well, thank you. " + IDENTITY),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("Bye", "Goodbye!"),
    (
        "What is Python?",
        "Python is a programming language. Its standard library has modules for text, files, "
        "networks, threads and much more.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One documented thing: its dotted name, the module it lives in, its answer, and its source when short."""

    name: str
    module: str
    answer: str
    source: str | None
    is_module: bool = False
    is_topic: bool = False


def first_paragraphs(docstring: str) -> str:
    """The leading paragraphs that fit the answer length; at least the first one, cut at a sentence or a line."""
    paragraphs = [part.rstrip() for part in inspect.cleandoc(docstring).split("\n\n") if part.strip()]
    if not paragraphs:
        return ""
    answer = paragraphs[0]
    for part in paragraphs[1:]:
        if len(answer) + 2 + len(part) > MAX_ANSWER_CHARACTERS:
            break
        answer += "\n\n" + part
    if len(answer) <= MAX_ANSWER_CHARACTERS:
        return answer
    head = answer[:MAX_ANSWER_CHARACTERS]
    cut = max(head.rfind(". ") + 1, head.rfind("\n"))
    return head[:cut].rstrip() if cut > 0 else ""


def module_name(path: str) -> str:
    """`json/decoder.py` -> `json.decoder`; `json/__init__.py` -> `json`."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _source_of(node: ast.AST, lines: list[str]) -> str | None:
    """The text of a short function without its decorators; None for a class or a long one."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
        return None
    if node.end_lineno - node.lineno >= MAX_SOURCE_LINES:
        return None
    return textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()


def _walk(node: ast.AST, prefix: str, module: str, lines: list[str]) -> Iterator[Entry]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}.{child.name}"
        answer = first_paragraphs(ast.get_docstring(child) or "")
        # Private and special methods stay in the library text; as questions they would only take room.
        if len(answer) >= 12 and not child.name.startswith("_"):
            yield Entry(name=name, module=module, answer=answer, source=_source_of(child, lines))
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, name, module, lines)


def _native_entries() -> Iterator[Entry]:
    for module_label in NATIVE_MODULES:
        module = importlib.import_module(module_label)
        label = module_label.lstrip("_")
        for name, value in sorted(vars(module).items()):
            documentation = getattr(value, "__doc__", None)
            if name.startswith("_") or not callable(value) or not isinstance(documentation, str):
                continue
            answer = first_paragraphs(documentation)
            if len(answer) < 12:
                continue
            yield Entry(
                name=name if label == "builtins" else f"{label}.{name}", module="native", answer=answer, source=None
            )


def entries(documents: list[Document], topics: list[Document]) -> list[Entry]:
    """Every documented function, class, module and topic of the training documents (held-out files are left out)."""
    found: list[Entry] = []
    for document in documents:
        if document.held_out or document.is_test:
            continue
        module = module_name(document.path)
        tree = ast.parse(document.text)
        module_answer = first_paragraphs(ast.get_docstring(tree) or "")
        if module_answer:
            found.append(Entry(name=module, module=module, answer=module_answer, source=None, is_module=True))
        # People write os.path, not posixpath: the module's platform name would teach the wrong one.
        prefix = "os.path" if module == "posixpath" else module
        found.extend(_walk(tree, prefix, module, document.text.splitlines()))
    found.extend(_native_entries())
    for topic in topics:
        name = topic.path.rsplit("/", 1)[-1].lower()
        answer = first_paragraphs(topic.text.split("\n\n", 1)[-1])
        if answer:
            found.append(Entry(name=name, module="topics", answer=answer, source=None, is_topic=True))
    return found


def _num_copies(entry: Entry) -> int:
    if entry.name in SHOWCASE:
        return SHOWCASE_COPIES
    if entry.module in FIRST_MODULES:
        return FIRST_COPIES
    return POPULAR_COPIES if entry.module in POPULAR_MODULES else 1


def _question_and_answer(entry: Entry, rng: random.Random) -> list[Turn]:
    if entry.source is not None and rng.random() < 0.2:
        return [("user", rng.choice(ASK_SOURCE).format(name=entry.name)), ("assistant", entry.source)]
    phrasings = ASK_MODULE if entry.is_module else ASK_TOPIC if entry.is_topic else ASK_PURPOSE
    # Half of the questions take the first phrasing: it is the one that the documentation of the demo shows.
    question = phrasings[0] if rng.random() < 0.4 else rng.choice(phrasings)
    return [("user", question.format(name=entry.name)), ("assistant", entry.answer)]


def conversations(found: list[Entry], *, seed: int) -> list[Conversation]:
    """One pass over all entries (popular ones several times), shuffled, in conversations of one to three exchanges."""
    rng = random.Random(seed)
    exchanges: list[list[Turn]] = []
    for entry in found:
        exchanges.extend(_question_and_answer(entry, rng) for _ in range(_num_copies(entry)))
    for question, answer in SMALL_TALK * 25:
        exchanges.append([("user", question), ("assistant", answer)])
    rng.shuffle(exchanges)
    result: list[Conversation] = []
    position = 0
    while position < len(exchanges):
        num_exchanges = rng.choices((1, 2, 3), weights=(7, 2, 1))[0]
        turns = [turn for exchange in exchanges[position : position + num_exchanges] for turn in exchange]
        if rng.random() < 0.1:
            turns.insert(0, ("system", rng.choice(SYSTEM_PROMPTS)))
        result.append(turns)
        position += num_exchanges
    return result
