"""The JSON of a body: what is valid comes through unchanged, what is not is refused in a time that stays linear."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.serve.body import check_structure, parse_json
from openautoglm.serve.replies import ReplyError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.booleans())
def test_valid_objects_come_through(value: dict[str, object], ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parsed(data) == json.loads(data)


def parsed(data: bytes) -> dict[str, object]:
    check_structure(data, 64)
    return parse_json(data)


def outcome(data: bytes) -> object:
    """The object, or the status of the refusal."""
    try:
        return parsed(data)
    except ReplyError as error:
        return error.reply.status


@given(st.binary(max_size=200) | TEXT.map(lambda text: f'{{"x": "{text}"}}'.encode()))
def test_any_bytes_give_an_object_or_a_refusal(data: bytes) -> None:
    result = outcome(data)
    assert isinstance(result, dict) or result == 400


@pytest.mark.parametrize("depth", [1, 63, 64])
def test_brackets_inside_strings_are_no_depth(depth: int) -> None:
    text = "[{" * 1000 + '\\"' * 10
    value: object = text
    for _ in range(depth - 1):
        value = [value]
    data = json.dumps({"x": value}).encode()
    assert parsed(data) == {"x": value}


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": "' + b"\\" * (8 << 20),
        b'{"x": "' + b'a\\"' * (2 << 20),
        b'"' * (8 << 20),
        b"[" * (8 << 20),
        b"]" * (8 << 20),
        b'{"x": [' + b"1," * (4 << 20),
        b"{}" * (4 << 20),
    ],
    ids=["backslashes", "escaped quotes", "quotes", "opening", "closing", "numbers", "empty objects"],
)
def test_the_largest_bodies_are_refused_in_linear_time(data: bytes) -> None:
    begin = time.perf_counter()
    with pytest.raises(ReplyError):
        parsed(data)
    assert time.perf_counter() - begin < 2
