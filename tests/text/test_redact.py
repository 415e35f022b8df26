"""Private data: found where an independent generator put it, nowhere else, however the text is cut, in linear time."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import PrivateDataError
from openautoglm.text.private_data import Kind, find_private, plain_text
from openautoglm.text.redact import Mode, RedactionOptions, Redactor
from tests.text.private_samples import KINDS, Sample, harmless_sample, luhn_digit, private_sample

NUM_SAMPLES = 3000
MASK = Redactor(RedactionOptions())
HASH = Redactor(RedactionOptions(mode=Mode.HASH, key=b"k" * 32))


def found_in(text: str) -> list[tuple[str, int, int]]:
    return [(match.kind.value, match.begin, match.end) for match in find_private(plain_text(text), set(Kind))]


@pytest.mark.parametrize("kind", KINDS)
def test_recall(kind: str) -> None:
    rng = random.Random(f"recall {kind}")
    wanted = missed = 0
    for _ in range(NUM_SAMPLES):
        sample = private_sample(rng, kind)
        found = found_in(sample.text)
        for one in sample.private:
            wanted += 1
            # All of it must go; under another name it has gone too.
            missed += not any(begin <= one[1] and one[2] <= end for _, begin, end in found)
    assert missed <= wanted * 0.001, f"{missed} of {wanted} were missed"


def test_precision() -> None:
    rng = random.Random("precision")
    right = wrong = 0
    for _ in range(NUM_SAMPLES):
        for sample in (private_sample(rng, rng.choice(list(KINDS))), harmless_sample(rng)):
            for _, begin, end in found_in(sample.text):
                good = any(begin < stop and start < end for _, start, stop in sample.private)
                right += good
                wrong += not good
    assert right > NUM_SAMPLES
    assert wrong <= (right + wrong) * 0.01, f"{wrong} of {right + wrong} were no private data"


ALPHABET = st.sampled_from(
    [
        "13812345678", "138 1234 5678", "11010519491231002X", "4111111111111111", "4111-1111-1111-1111", "a@b.com",
        "1.2.3.4", "192。168。1。1", "sk-abcdefghij0123456789", "api_key: ", "API_KEY", " = ", "2001:db8::1",
        " ",        "  ", "-", ".", "。", "，",
        "\u200b", "１", "X", "7", "a", "电", "\n", "@", ":", "v", "86", "+86 ", "²", '="', "version ",
    ]
)  # fmt: skip
TEXTS = st.lists(ALPHABET, max_size=14).map("".join)


@settings(max_examples=600, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_pieces_give_what_the_whole_text_gives(text: str, rng: random.Random) -> None:
    for redactor in (MASK, HASH):
        whole, pieces = Counter(), Counter()
        expected = redactor.redact(text, whole)
        stream, given = redactor.stream(pieces), ""
        position = 0
        while position < len(text):
            size = rng.choice([1, 1, 2, 3, 7, 30])
            given += stream.push(text[position : position + size])
            position += size
        assert given + stream.flush() == expected
        assert pieces == whole


@settings(max_examples=20, deadline=None)
@given(st.lists(ALPHABET, min_size=1, max_size=6).map("".join), st.integers(1, 900))
def test_long_texts_without_a_break_are_not_held_for_ever(unit: str, size: int) -> None:
    text = unit * (20_000 // len(unit))
    stream, given, held = MASK.stream(Counter()), 0, 0
    pieces = []
    for position in range(0, len(text), size):
        pieces.append(stream.push(text[position : position + size]))
        given += size
        held = max(held, len(stream._text))
    pieces.append(stream.flush())
    assert "".join(pieces) == MASK.redact(text, Counter())
    assert held < 10_000 + size


def test_a_chinese_stream_is_not_held_back() -> None:
    stream = MASK.stream(Counter())
    assert [stream.push(character) for character in "你好，世界"] == list("你好，世界")
    assert stream.push("word ") == "word "
    assert stream.push("138") == ""
    # The letter behind the space shows that the number has ended.
    assert stream.push(" ") == ""
    assert stream.push("a") == "138 "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("身份证１１０１０５１９４９１２３１００２Ｘ。", "身份证[id_number]。"),
        ("卡号6222021234567890128元", "卡号[bank_card]元"),
        ("打138\u200b1234\u200b5678", "打[mobile]"),
        ("138-1234-5678和139 1234 5678", "[mobile]和[mobile]"),
        ("x@y.com，a.b@c.cn。", "[email]，[email]。"),
        ("api_key = 'a1b2c3d4e5f6a7b8'", "api_key = '[api_key]'"),
        ("api_key='a1b2c3d4e5f6a7b8'", "api_key='[api_key]'"),
        ("192。168。１．1", "[ip_address]"),
        ("版本1.2.3.4和1.2.3.4", "版本1.2.3.4和[ip_address]"),
        ("13812345678²", "[mobile]²"),
        ("13812345678.5 3.13812345678 113812345678", "13812345678.5 3.13812345678 113812345678"),
        ("2024112412345678 1732489999123456", "2024112412345678 1732489999123456"),
    ],
)
def test_known_texts(text: str, expected: str) -> None:
    assert MASK.redact(text, Counter()) == expected
    stream = MASK.stream(Counter())
    assert "".join([*(stream.push(character) for character in text), stream.flush()]) == expected


def test_modes() -> None:
    counts: Counter[str] = Counter()
    one = HASH.redact("13812345678", counts)
    assert one == HASH.redact("１３８ 1234-5678", counts) != HASH.redact("13812345679", counts)
    assert one != Redactor(RedactionOptions(mode=Mode.HASH, key=b"other")).redact("13812345678", counts)
    assert counts == {"mobile": 4}
    # What was redacted once holds nothing any more.
    assert HASH.redact(one * 3, counts) == one * 3
    with pytest.raises(PrivateDataError) as caught:
        Redactor(RedactionOptions(mode=Mode.BLOCK)).redact("call 13812345678", counts)
    assert caught.value.kind == "mobile"
    assert "138" not in str(caught.value)


def test_only_the_kinds_that_were_asked_for() -> None:
    redactor = Redactor(RedactionOptions(kinds=frozenset({Kind.MOBILE})))
    assert redactor.redact("13812345678 a@b.com 4111111111111111", Counter()) == "[mobile] a@b.com 4111111111111111"


HOSTILE = [
    "a",
    "1",
    "1-",
    "12 ",
    "1234 ",
    "a@",
    "a.",
    "@a.",
    ":",
    "1.",
    "sk-",
    "eyJaaaaaaaaa.",
    "api_key=",
    "a0",
    "138",
    "。1",
    "é",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_in_any_text(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    begin = time.process_time()
    MASK.redact(text, Counter())
    # A second at most is usual; anything quadratic takes minutes.
    assert time.process_time() - begin < 20


def test_the_generator_makes_what_others_call_valid() -> None:
    # Known numbers: the standard's own example, and a card that shops use to test.
    assert found_in("11010519491231002X") == [("id_number", 0, 18)]
    assert luhn_digit("411111111111111") == 1
    assert isinstance(harmless_sample(random.Random(1)), Sample)
