"""A byte-level BPE tokenizer of any vocabulary size: the demo model's, or bare bytes, filled up with tokens that no
text produces.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

DEMO_DIRECTORY = Path(__file__).parents[1] / "src" / "openautoglm" / "demo"
SPECIAL_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
END_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
CHAT_TEMPLATE = (
    "[gMASK]<sop>{%- for message in messages %}{{- '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)


def write_tokenizer(directory: Path, vocab_size: int) -> list[int]:
    """Write tokenizer.json and tokenizer_config.json; return the ids that end an answer, <|endoftext|> first."""
    demo = DEMO_DIRECTORY / "tokenizer.json"
    document = json.loads(demo.read_text(encoding="utf-8")) if demo.is_file() else None
    if document is None or len(document["model"]["vocab"]) > vocab_size:
        if vocab_size < MIN_VOCAB_SIZE:
            sys.exit(f"a vocabulary of {vocab_size} has no room for {MIN_VOCAB_SIZE} bytes and special tokens")
        document = _bytes_only()
    vocabulary: dict[str, int] = document["model"]["vocab"]
    # The mark stands for a space: the text of random tokens reads as words.
    vocabulary.update({f"Ġw{token}": token for token in range(len(vocabulary), vocab_size)})
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKENS[0],
        "pad_token": END_TOKENS[0],
        "extra_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return [vocabulary[token] for token in END_TOKENS]


def _bytes_only() -> dict[str, dict[str, dict[str, int]]]:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token=None))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    document: dict[str, dict[str, dict[str, int]]] = json.loads(tokenizer.to_str())
    return document
