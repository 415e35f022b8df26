"""JSON from a checkpoint or a hub: size, depth, number of values, duplicate keys and encoding are all checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from openautoglm.checkpoint.files import quoted, read_small_file
from openautoglm.errors import CheckpointFormatError
from openautoglm.units import MIB, format_bytes

_MAX_INTEGER_DIGITS = 20
_ADVICE = "download the file again"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLimits:
    """Bounds of a document; `max_structure` counts its braces, brackets and commas, and so bounds the parser's memory
    (about 100 bytes for each, beside the text itself).
    """

    max_bytes: int
    max_depth: int
    max_structure: int


CONFIG_LIMITS = JsonLimits(max_bytes=16 * MIB, max_depth=32, max_structure=1_000_000)


class _BadJsonError(ValueError):
    """What a hook of the parser found."""


def read_json(path: Path, *, limits: JsonLimits = CONFIG_LIMITS) -> dict[str, object]:
    """Read a JSON object from a file such as config.json.

    Raises `CheckpointFormatError` naming the file for anything that is not one UTF-8 JSON object within `limits`.
    """
    return parse_json_object(read_small_file(path, max_bytes=limits.max_bytes), source=str(path), limits=limits)


def parse_json_object(data: bytes, *, source: str, limits: JsonLimits = CONFIG_LIMITS) -> dict[str, object]:
    """Parse one UTF-8 JSON object; `source` names it in errors. Peak bytes: see `JsonLimits`."""
    if len(data) > limits.max_bytes:
        raise _bad(source, f"JSON of {format_bytes(len(data))}, at most {format_bytes(limits.max_bytes)} expected")
    structure = sum(data.count(mark) for mark in (b"{", b"[", b","))
    if structure > limits.max_structure:
        raise _bad(source, f"JSON with {structure} values, at most {limits.max_structure} expected")
    try:
        value: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise _bad(source, f"not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise _bad(source, f"JSON nested deeper than {limits.max_depth}") from error
    except _BadJsonError as error:
        raise _bad(source, str(error)) from error
    except ValueError as error:
        raise _bad(source, f"not JSON ({quoted(str(error))})") from error
    if not isinstance(value, dict):
        raise _bad(source, f"a JSON {type(value).__name__} where an object was expected")
    if _depth(value, limits.max_depth) > limits.max_depth:
        raise _bad(source, f"JSON nested deeper than {limits.max_depth}")
    return value


def _bad(source: str, what: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{source}: {what}; {_ADVICE}")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadJsonError(f"the key {quoted(twice)} stands twice in one object")
    return result


def _refuse_constant(name: str) -> Never:
    raise _BadJsonError(f"{name} is not JSON: finite numbers expected")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        raise _BadJsonError(f"an integer of {len(digits)} digits, at most {_MAX_INTEGER_DIGITS} expected")
    return int(digits)


def _depth(value: object, stop_above: int) -> int:
    """Levels of containers, counted level by level so that no recursion is needed; stops counting past the limit."""
    depth = 0
    level: list[object] = [value]
    while level and depth <= stop_above:
        depth += 1
        below: list[object] = []
        for container in level:
            if isinstance(container, dict):
                below.extend(item for item in container.values() if isinstance(item, dict | list))
            elif isinstance(container, list):
                below.extend(item for item in container if isinstance(item, dict | list))
        level = below
    return depth
