"""Splitting: nothing is lost, no piece is too long, and what must stay whole does, in documents of known parts."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import InvalidRequestError
from openautoglm.text.boundaries import Boundary, find_structure
from openautoglm.text.split import MIN_TOKENS, Piece, split_text
from openautoglm.text.tokenizer import Tokenizer
from tests.text.fixtures import byte_level, sentencepiece, write_tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentencepiece], ids=["byte level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param()))


@dataclass
class CountedTokens:
    """One token a character, and how many characters were encoded."""

    num_characters: int = 0

    def encode(self, text: str) -> list[int]:
        self.num_characters += len(text)
        return [ord(character) for character in text]

    def token_begins(self, text: str) -> array[int]:
        self.num_characters += len(text)
        return array("I", range(len(text)))


SENTENCES = st.sampled_from(
    [
        "The engine takes bytes. ", "It costs 3.5 GiB, mostly; see Dr. Smith. ", "Why? ", "“Done!” she said. ",
        "模型的记忆是有限的。", "他说：“你好！”然后，走了。", "价格：一、二、三；完。", "no end here ",
        "naïve café — ½ ",
    ]
)  # fmt: skip
PARAGRAPHS = st.lists(SENTENCES, min_size=1, max_size=6).map("".join).map(str.rstrip).filter(bool)
CODE = st.lists(
    st.sampled_from(["x = 1. Then, go", "", "    return a | b", "# not a heading", "| no | row |", "打印。一二"]),
    min_size=1,
    max_size=8,
).map(lambda lines: "```python\n" + "\n".join(lines) + "\n```")
TABLES = st.lists(st.sampled_from(["| a, b | c. D |", "| 名称。值 | 1 |", "| x |"]), min_size=1, max_size=5)
PARTS = st.one_of(
    PARAGRAPHS.map(lambda text: ("text", text)),
    CODE.map(lambda text: ("code_block", text)),
    TABLES.map(lambda rows: ("table_row", "\n".join(rows))),
    st.sampled_from(["# Heading", "- item one\n- item two", "第三章 记忆"]).map(lambda text: ("text", text)),
)


def assembled(parts: list[tuple[str, str]]) -> tuple[str, list[tuple[int, int, str]]]:
    """Return the document, and where its blocks are: written down while it is put together, not looked for."""
    document, blocks = "", []
    for kind, text in parts:
        if kind == "code_block":
            blocks.append((len(document), len(document) + len(text), kind))
        elif kind == "table_row":
            position = len(document)
            for row in text.split("\n"):
                blocks.append((position, position + len(row), kind))
                position += len(row) + 1
        document += text + "\n\n"
    return document, blocks


def check_pieces(document: str, pieces: list[Piece], tokenizer: Tokenizer, max_tokens: int, overlap: int) -> None:
    """What holds of every document."""
    assert b"".join(document[p.begin : p.end].encode() for p in pieces) == document.encode()
    assert [p.begin for p in pieces] == [0, *(p.end for p in pieces)][: len(pieces)]
    for piece in pieces:
        assert piece.begin < piece.end
        assert piece.num_tokens == len(tokenizer.encode(document[piece.overlap_begin : piece.end])) <= max_tokens
        assert len(tokenizer.encode(document[piece.overlap_begin : piece.begin])) <= overlap
        assert 0 <= piece.overlap_begin <= piece.begin


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=8), st.integers(MIN_TOKENS, 200), st.floats(0, 0.5))
def test_blocks_stay_whole_unless_one_alone_is_too_large(
    tokenizer: Tokenizer, parts: list[tuple[str, str]], max_tokens: int, share: float
) -> None:
    document, blocks = assembled(parts)
    overlap = int(share * max_tokens)
    pieces = split_text(document, tokenizer, max_tokens=max_tokens, overlap_tokens=overlap)
    check_pieces(document, pieces, tokenizer, max_tokens, overlap)
    for piece in pieces:
        inside = [kind for begin, end, kind in blocks if begin < piece.end < end]
        assert piece.broken == (inside[0] if inside else None)
        assert (
            not any(begin < piece.overlap_begin < end for begin, end, _ in blocks) or piece.overlap_begin == piece.begin
        )
    for begin, end, _ in blocks:
        if any(begin < piece.end < end for piece in pieces):
            # The newline that ends a block belongs to it.
            assert len(tokenizer.encode(document[begin : end + 1])) > max_tokens


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.sampled_from("ab.,|`~\n\r\t #-=·。，；（“”\u3000\u0301👩\u200d🏽世1：")
        | st.characters(exclude_categories=["Cs"])
    ),
    st.integers(MIN_TOKENS, 60),
    st.integers(0, 16),
)
def test_nothing_is_lost_of_any_text(tokenizer: Tokenizer, text: str, max_tokens: int, overlap: int) -> None:
    document = text * 7
    pieces = split_text(document, tokenizer, max_tokens=max_tokens, overlap_tokens=overlap)
    check_pieces(document, pieces, tokenizer, max_tokens, overlap)


def boundaries_of(text: str) -> list[tuple[str, str]]:
    """The text in its pieces between boundaries, each with the level of its end."""
    found = find_structure(text)
    begins = [0, *found.positions]
    return [
        (text[begin:end], Boundary(level).name)
        for begin, end, level in zip(begins, found.positions, found.levels, strict=False)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", [("One. ", "SENTENCE"), ("Two.", "SENTENCE")]),
        ("Dr. A. Smith, e.g. 3.5 vs. 4.", [("Dr. A. Smith, ", "CLAUSE"), ("e.g. 3.5 vs. 4.", "SENTENCE")]),
        ('"Done!" he said.', [('"Done!" he said.', "SENTENCE")]),
        ("好。”他说，走", [("好。”", "SENTENCE"), ("他说，", "CLAUSE"), ("走", "LINE")]),
        ("a\nwrapped line.\n\n\nnext", [("a\n", "LINE"), ("wrapped line.\n\n\n", "PARAGRAPH"), ("next", "LINE")]),
        ("一。\n二。\n", [("一。\n", "ITEM"), ("二。\n", "ITEM")]),
        ("Title\n=====\ntext", [("Title\n=====\n", "LINE"), ("text", "LINE")]),
        ("x\nTitle\n---\ny", [("x\n", "SECTION"), ("Title\n---\n", "LINE"), ("y", "LINE")]),
        ("x\n1. one. two\n2. b", [("x\n", "ITEM"), ("1. one. two\n", "ITEM"), ("2. b", "LINE")]),
    ],
)
def test_boundaries_of_known_texts(text: str, expected: list[tuple[str, str]]) -> None:
    assert boundaries_of(text) == expected


def test_a_table_without_outer_pipes_is_one() -> None:
    text = "before, it\n\nName, x | Value. Y\n--- | ---\na, b | c\nd | e. F\n\nafter"
    found = find_structure(text)
    blocks = [text[b:e] for b, e in zip(found.block_begins, found.block_ends, strict=True)]
    assert blocks == ["Name, x | Value. Y\n", "--- | ---\n", "a, b | c\n", "d | e. F\n"]
    assert not [
        p for p in found.positions for b, e in zip(found.block_begins, found.block_ends, strict=True) if b < p < e
    ]


def test_indented_code_is_one_block_with_its_empty_lines() -> None:
    text = "So:\n\n    if a:\n\n        b. C\n\nend. Of it"
    found = find_structure(text)
    assert [text[b:e] for b, e in zip(found.block_begins, found.block_ends, strict=True)] == [
        "    if a:\n\n        b. C\n"
    ]


def test_a_piece_ends_at_the_strongest_boundary_of_its_last_part() -> None:
    document = "word " * 12 + "end.\n\n" + "More words here. " * 3
    pieces = split_text(document, CountedTokens(), max_tokens=100)
    assert pieces[0].boundary is Boundary.PARAGRAPH
    assert document[: pieces[0].end].endswith("end.\n\n")
    assert pieces[-1].boundary is Boundary.END


def test_a_block_is_cut_only_if_it_really_is_too_large() -> None:
    class Overestimated(CountedTokens):
        """Says of the whole document that it has twice the tokens that its parts have."""

        def token_begins(self, text: str) -> array[int]:
            return array("I", sorted([*range(len(text))] * 2))

    block = "```\n" + "x = 1\n" * 8 + "```\n"
    pieces = split_text(f"Before.\n\n{block}\nAfter.", Overestimated(), max_tokens=64)
    assert len(block) < 64
    assert not any(piece.broken for piece in pieces)


def test_overlap_is_whole_sentences() -> None:
    document = "".join(f"Sentence {index} ends. " for index in range(20))
    pieces = split_text(document, CountedTokens(), max_tokens=100, overlap_tokens=45)
    for piece in pieces[1:]:
        overlap = document[piece.overlap_begin : piece.begin]
        assert overlap.startswith("Sentence")
        assert overlap.endswith("ends. ")
        assert overlap.count(".") == 2


def test_characters_are_not_parted() -> None:
    family = "👩\u200d👩\u200d👧"
    for piece in split_text((family + "e\u0301") * 60, CountedTokens(), max_tokens=41):
        assert ((family + "e\u0301") * 60)[piece.end - 1] in ("👧", "\u0301")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": MIN_TOKENS - 1}, "max_tokens"),
        ({"max_tokens": 100, "overlap_tokens": 51}, "overlap_tokens"),
        ({"max_tokens": 100, "overlap_tokens": -1}, "overlap_tokens"),
    ],
)
def test_numbers_that_cannot_be(fields: dict[str, int], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        split_text("text", CountedTokens(), **fields)
    assert caught.value.param == param


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"U\+D800, at character 70000"):
        split_text("a" * 70_000 + "\ud800", tokenizer, max_tokens=100)


HOSTILE = {
    "one letter": "a", "empty lines": "\n", "pipes": "|", "rows": "|a|\n", "fences": "```\n", "backticks": "`",
    "full stops": ". ", "closers": ".)", "marks": "e\u0301", "joiners": "👩\u200d", "spaces": " ",
    "indents": "    a\n\n",
    "dashes": "- |", "underlines": "a\n---\n", "quotes": "。”", "items": "1. a\n", "headings": "# a\n", "tabs": "\t|\t",
}  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_time_is_linear_in_any_document(unit: str) -> None:
    document = unit * (400_000 // len(unit))
    tokens = CountedTokens()
    begin = time.process_time()
    pieces = split_text(document, tokens, max_tokens=500, overlap_tokens=100)
    # A second or so is usual; anything quadratic takes minutes.
    assert time.process_time() - begin < 20
    assert "".join(document[piece.begin : piece.end] for piece in pieces) == document
    assert tokens.num_characters < 12 * len(document)


def test_the_files_of_this_repository(tokenizer: Tokenizer) -> None:
    for name in ("README.md", "README.zh-CN.md", "docs/log.md", "CONTRIBUTING.md"):
        document = (Path(__file__).parents[2] / name).read_text()
        pieces = split_text(document, tokenizer, max_tokens=400, overlap_tokens=60)
        check_pieces(document, pieces, tokenizer, 400, 60)
