"""What each weight format costs in quality, on the embedded model or another, beside the f32 reference.

    python benchmarks/format_quality.py [MODEL] [--text FILE] [--limit 6000]

Prints, per format, the mean KL divergence from the f32 reference in nats per token, and bits per byte of the text
(by default the start of the standard library's textwrap.py).
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from openautoglm.llm import LLM
from openautoglm.quality.likelihood import bits_per_byte, mean_divergence

LOADS = (
    ("bf16", {}),
    ("int8", {}),
    ("int8, per token", {"activations": "token"}),
    ("int4", {"group": 32}),
    ("int4", {"group": 64}),
    ("int4", {"group": 128}),
    ("nf4", {"group": 64}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--text", type=Path, default=Path(textwrap.__file__))
    parser.add_argument("--limit", type=int, default=6000, help="characters of the text")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")[: arguments.limit]
    num_bytes = len(text.encode())
    limits = {"context": 2048, "concurrency": 1}
    with LLM(arguments.model, quant="f32", **limits) as reference:
        tokens = reference.tokenizer.encode(text)
        exact = bits_per_byte(reference.executor, tokens, num_bytes)
        print(f"{len(tokens)} tokens of {arguments.text.name}\n{'format':<18}{'KL, nats':>10}{'bits per byte':>15}")
        print(f"{'f32':<18}{0.0:>10.5f}{exact:>15.4f}")
        for name, settings in LOADS:
            with LLM(arguments.model, quant=name.partition(",")[0], **settings, **limits) as candidate:
                divergence = mean_divergence(reference.executor, candidate.executor, tokens)
                bits = bits_per_byte(candidate.executor, tokens, num_bytes)
            label = name + (f"-g{settings['group']}" if "group" in settings else "")
            print(f"{label:<18}{divergence:>10.5f}{bits:>15.4f}")


if __name__ == "__main__":
    main()
