"""What it is worth to cut a document where its meaning pauses: adaptive splitting beside cuts every so many tokens.

    python benchmarks/split_coherence.py [--max-tokens 96 192] [--documents 40] [--output FILE]

The texts are docstrings of modules of the standard library that the demo model was not trained on. Fixed cuts are made
twice: at the same budget, and at the budget that gives as many pieces as adaptive splitting. Told of each:

- sentences cut: cuts that do not stand behind the end of a sentence or an empty line, by a rule of this program's own;
- the first tokens of the pieces that follow a cut: perplexity given their piece alone, as one who retrieves or
  summarises a piece sees them, and given the 512 tokens before. The gap between the two is what the cut took away.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openautoglm.llm import LLM
from openautoglm.quality.likelihood import token_nats
from openautoglm.text.split import split_text

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from demo_corpus import library_documents

CONTEXT = 1024
BEFORE_TOKENS = 512
NEXT_TOKENS = 32
LEAST_TOKENS = 500
_ENDED = re.compile(r"([.!?:。！？：][\"'”’)\]」』）*`]*\s*|\n\s*\n\s*)$")


@dataclass(slots=True)
class Score:
    """Sums over all documents of one way to cut."""

    num_cuts: int = 0
    num_inside: int = 0
    num_tokens: int = 0
    alone_nats: float = 0.0
    whole_nats: float = 0.0
    num_pieces: int = 0
    num_piece_tokens: int = 0


def prose() -> Iterator[str]:
    """Yield the docstrings of each held-out module as one text."""
    for document in library_documents(with_tests=False):
        if not document.held_out:
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(document.text)) if isinstance(node, kinds)]
        strings = [text for node in nodes if (text := ast.get_docstring(node))]
        yield "\n\n".join(strings)


def fixed_cuts(begins: Sequence[int], max_tokens: int) -> list[int]:
    """Return the characters to cut before, every `max_tokens` tokens."""
    return [begins[index] for index in range(max_tokens, len(begins), max_tokens)]


def add(score: Score, llm: LLM, text: str, cuts: Sequence[int]) -> None:
    """Score one document's cuts."""
    executor, encode = llm.executor, llm.tokenizer.encode
    opening = encode("", add_special_tokens=True)
    begins = [0, *cuts]
    for begin, end in zip(begins, [*cuts, len(text)], strict=True):
        piece = encode(text[begin:end])
        score.num_pieces += 1
        score.num_piece_tokens += len(piece)
        if begin == 0:
            continue
        score.num_cuts += 1
        score.num_inside += _ENDED.search(text[:begin]) is None
        following = encode(text[begin:end])[:NEXT_TOKENS]
        before = encode(text[:begin])[-BEFORE_TOKENS:]
        score.num_tokens += len(following)
        score.alone_nats += tail_nats(executor, [*opening, *following], len(following))
        score.whole_nats += tail_nats(executor, [*opening, *before, *following], len(following))


def tail_nats(executor: object, tokens: list[int], num_tail: int) -> float:
    """Return the nats of the last tokens given all before them."""
    return float(np.sum(token_nats(executor, tokens)[-num_tail:]))  # type: ignore[arg-type]


def matching_budget(begins: Sequence[int], num_pieces: int) -> int:
    """Return the fixed budget that cuts a document into so many pieces."""
    return max(1, math.ceil(len(begins) / num_pieces))


def measure(llm: LLM, texts: Sequence[str], max_tokens: int) -> dict[str, Score]:
    """Return the scores of the ways to cut at one budget."""
    scores = {"adaptive": Score(), "fixed, same budget": Score(), "fixed, as many pieces": Score()}
    for text in texts:
        begins = llm.tokenizer.token_begins(text)
        adaptive = [piece.begin for piece in split_text(text, llm.tokenizer, max_tokens=max_tokens)][1:]
        ways = (
            adaptive,
            fixed_cuts(begins, max_tokens),
            fixed_cuts(begins, matching_budget(begins, len(adaptive) + 1)),
        )
        for score, cuts in zip(scores.values(), ways, strict=True):
            add(score, llm, text, cuts)
    return scores


def table(max_tokens: int, scores: dict[str, Score]) -> str:
    """Return one budget's rows."""
    lines = []
    for name, score in scores.items():
        alone, whole = score.alone_nats / score.num_tokens, score.whole_nats / score.num_tokens
        lines.append(
            f"| {max_tokens} | {name} | {score.num_pieces} | {score.num_piece_tokens / score.num_pieces:.0f} "
            f"| {score.num_inside / score.num_cuts:.1%} | {math.exp(alone):.2f} | {math.exp(whole):.2f} "
            f"| {alone - whole:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[96, 192])
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| budget | cuts | pieces | tokens each | sentences cut | perplexity alone | in the document | gap, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with LLM("demo", context=CONTEXT, concurrency=1, quant="int8", cache="off") as llm:
        long = (text for text in prose() if len(llm.tokenizer.encode(text)) >= LEAST_TOKENS)
        texts = [text for text, _ in zip(long, range(arguments.documents), strict=False)]
        for max_tokens in arguments.max_tokens:
            lines.append(table(max_tokens, measure(llm, texts, max_tokens)))
            print("\n".join(lines if len(lines) == 3 else lines[-1:]), flush=True)
    if arguments.output is not None:
        arguments.output.write_text(f"{len(texts)} documents.\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
