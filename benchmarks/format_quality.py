"""What each format of weights and of the KV cache costs in quality, on the embedded model or another.

    python benchmarks/format_quality.py [MODEL] [--text FILE] [--limit 6000]

Prints the mean KL divergence from a reference in nats per token, the perplexity per token and bits per byte of the text
(by default the start of the standard library's textwrap.py): of weight formats beside f32, then of cache formats beside
the same weights with the widest cache.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from openautoglm.executor.protocol import Executor
from openautoglm.llm import LLM
from openautoglm.quality.likelihood import bits_per_byte, mean_divergence, token_nats
from openautoglm.spec.goal_settings import GoalSettings

LIMITS = GoalSettings(context=2048, concurrency=1)
REFERENCE = GoalSettings(quant="f32")
WEIGHTS = (
    GoalSettings(quant="bf16"),
    GoalSettings(quant="int8"),
    GoalSettings(quant="int8", activations="token"),
    GoalSettings(quant="int4", group=32),
    GoalSettings(quant="int4", group=64),
    GoalSettings(quant="int4", group=128),
    GoalSettings(quant="nf4", group=64),
)
# Weights of a cache's rows, and its formats: the first is the reference.
CACHES = (
    ("f32", ("f32", "bf16", "int8", "fp8")),
    ("int8", ("bf16", "int8", "fp8")),
    ("int4", ("bf16", "int8", "fp8")),
)


def label(settings: Mapping[str, object]) -> str:
    """Return the settings as one short text."""
    return ", ".join(value if name == "quant" else f"{name} {value}" for name, value in settings.items())


def loads() -> Iterator[tuple[GoalSettings, tuple[GoalSettings, ...]]]:
    """Yield each reference with what is measured beside it."""
    yield REFERENCE, WEIGHTS
    for quant, (first, *others) in CACHES:
        yield GoalSettings(quant=quant, kv=first), tuple(GoalSettings(quant=quant, kv=kv) for kv in others)


def row(name: str, executor: Executor, reference: Executor, tokens: list[int], num_bytes: int) -> str:
    """Return a line of the table."""
    divergence = 0.0 if executor is reference else mean_divergence(reference, executor, tokens)
    perplexity = math.exp(float(token_nats(executor, tokens).mean()))
    return f"{name:<24}{divergence:>10.6f}{perplexity:>12.4f}{bits_per_byte(executor, tokens, num_bytes):>15.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--text", type=Path, default=Path(textwrap.__file__))
    parser.add_argument("--limit", type=int, default=6000, help="characters of the text")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")[: arguments.limit]
    num_bytes = len(text.encode())
    for beside, candidates in loads():
        with LLM(arguments.model, **beside, **LIMITS) as reference:
            tokens = reference.tokenizer.encode(text)
            print(f"{len(tokens)} tokens of {arguments.text.name}, beside {label(beside)}")
            print(f"{'format':<24}{'KL, nats':>10}{'perplexity':>12}{'bits per byte':>15}")
            print(row(label(beside), reference.executor, reference.executor, tokens, num_bytes))
            for settings in candidates:
                with LLM(arguments.model, **settings, **LIMITS) as candidate:
                    print(row(label(settings), candidate.executor, reference.executor, tokens, num_bytes))


if __name__ == "__main__":
    main()
