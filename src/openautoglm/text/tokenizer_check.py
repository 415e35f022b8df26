"""The child that first parses an unknown tokenizer.json: run as a program, never imported.

Reads the file's bytes from standard input, tries the tokenizer on a probe, and writes what it learnt as JSON.
It stands by itself (standard library and `tokenizers` only) so that it starts in a few tens of milliseconds.
"""

from __future__ import annotations

import json
import resource
import sys

MEMORY_BYTES = 4 << 30
CPU_SECONDS = 60
PROBE = "Hello, world! \t\n\n  1234567890 + x = ½ · 你好，世界 · नमस्ते · 👩‍👩‍👧 <|user|> \u0301 \ufffd ▁"


def main() -> None:
    """Parse, probe, report."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(sys.stdin.buffer.read())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in (PROBE, "", " ", "a" * 1000):
        for add_special_tokens in (False, True):
            tokens = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            for skip_special_tokens in (False, True):
                tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
            for token in tokens:
                tokenizer.decode([token], skip_special_tokens=False)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    facts = {
        "vocab_size": max(vocabulary.values(), default=-1) + 1,
        "longest_token_bytes": max((len(token.encode("utf-8", "replace")) for token in vocabulary), default=0),
    }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
