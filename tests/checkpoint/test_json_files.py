"""config.json and its like: hostile text gives one clear error, ordinary text what json gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openautoglm.checkpoint.json_files import CONFIG_LIMITS, parse_json_object, read_json
from openautoglm.errors import CheckpointFormatError

TEXT = st.text('ab1"\\/\n\0é世😀', max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(TEXT, VALUES))
def test_good_objects_are_read_as_json_reads_them(value: dict[str, object]):
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json_object(text.encode(), source="config.json") == json.loads(text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_typed_error(data: bytes):
    try:
        result: object = parse_json_object(data, source="config.json")
    except CheckpointFormatError as error:
        result = str(error)
    assert isinstance(result, dict) or str(result).startswith("config.json: ")


BAD = {
    "empty": (b"", "not JSON"),
    "list": (b"[1]", "a JSON list where an object was expected"),
    "trailing text": (b"{} x", "not JSON"),
    "duplicate key": (b'{"a": {"vocab_size": 1, "vocab_size": 2}}', "'vocab_size' stands twice"),
    "NaN": (b'{"rope_theta": NaN}', "NaN is not JSON"),
    "minus infinity": (b'{"rope_theta": -Infinity}', "-Infinity is not JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": (b'{"a": "\xe9"}', "not UTF-8"),
    "depth 33": (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32"),
    "depth 100,000": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 32"),
    "huge integer": (b'{"a": 1' + b"0" * 30 + b"}", "an integer of 31 digits"),
    "too many values": (b'{"a": [' + b"1," * 1_000_001 + b"1]}", "values, at most 1000000"),
    "too long": (b'{"a": "' + b"x" * CONFIG_LIMITS.max_bytes + b'"}', "at most 16.0 MiB"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_name_the_file_and_the_fault(tmp_path: Path, case: str):
    content, words = BAD[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "download" in str(caught.value)


def test_depth_32_is_read(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a":' * 32 + b"1" + b"}" * 32)
    assert read_json(path)["a"]


def test_things_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    faults = {"absent": "no such file", "pipe": "pipe, socket or device", ".": "is a directory"}
    for name, words in faults.items():
        with pytest.raises(CheckpointFormatError, match=words):
            read_json(tmp_path / name)


def test_a_device_without_end_is_not_read():
    with pytest.raises(CheckpointFormatError, match="pipe, socket or device"):
        read_json(Path("/dev/zero"))
