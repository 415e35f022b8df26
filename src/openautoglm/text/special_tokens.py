"""What tokenizer_config.json says beside tokenizer.json: named special tokens (bos, eos, …) and added tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openautoglm.checkpoint.json_files import read_json
from openautoglm.errors import TokenizerError

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that tokenizer_config.json declares beside tokenizer.json."""

    token: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """`named` maps names such as "bos_token" to text."""

    named: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()


def read_special_tokens(directory: Path) -> SpecialTokens:
    """Read tokenizer_config.json, and special_tokens_map.json for names it lacks; both may be missing."""
    config = read_tokenizer_config(directory)
    legacy_path = directory / "special_tokens_map.json"
    legacy = read_json(legacy_path) if legacy_path.is_file() else {}
    named: dict[str, str] = {}
    for source in (config, legacy):
        for name in (*_NAMES, *(key for key in source if key.endswith("_token"))):
            text = _content(source.get(name))
            if text is not None:
                named.setdefault(name, text)
    return SpecialTokens(named=named, added=_added_tokens(config.get("added_tokens_decoder")))


def read_tokenizer_config(directory: Path) -> Mapping[str, object]:
    """Read tokenizer_config.json; empty where there is none."""
    path = directory / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _content(value: object) -> str | None:
    """Return the text of a token, which is written as a string or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _added_tokens(value: object) -> tuple[AddedToken, ...]:
    if not isinstance(value, Mapping):
        return ()
    tokens = []
    for key, entry in value.items():
        content = _content(entry)
        if not str(key).isdecimal() or content is None:
            raise TokenizerError(f"tokenizer_config.json has the added token {key!r}, which has no id or no content")
        special = bool(entry.get("special", False)) if isinstance(entry, Mapping) else False
        tokens.append(AddedToken(token=int(key), content=content, special=special))
    return tuple(sorted(tokens, key=lambda added: added.token))
