"""POST /v1/split over a real socket: the document comes back whole, limits hold, and the loop stays free."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from openautoglm.serve.splitting import MAX_PIECES
from tests.serve.live import Live

DOCUMENT = (Path(__file__).parents[2] / "README.zh-CN.md").read_text()


def test_a_document_comes_back_whole(server: Live) -> None:
    answer = server.post("/v1/split", {"text": DOCUMENT, "max_tokens": 300, "overlap_tokens": 40, "model": "small"})
    assert answer.status_code == 200, answer.text
    pieces = answer.json()["data"]
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    joined = "".join(piece["text"][piece["begin"] - piece["overlap_begin"] :] for piece in pieces)
    assert joined.encode() == DOCUMENT.encode()
    for piece in pieces:
        assert piece["text"] == DOCUMENT[piece["overlap_begin"] : piece["end"]]
        # What /tokenize counts is what was promised.
        counted = server.post("/tokenize", {"prompt": piece["text"], "add_special_tokens": False}).json()["count"]
        assert counted == piece["num_tokens"] <= 300
    assert any(piece["overlap_begin"] < piece["begin"] for piece in pieces)
    assert pieces[-1]["boundary"] == "end"


def test_a_block_that_is_too_large_is_told(server: Live) -> None:
    text = "Before.\n\n```\n" + "x = compute(y, z)\n" * 40 + "```\n\nAfter."
    pieces = server.post("/v1/split", {"text": text, "max_tokens": 60}).json()["data"]
    assert {piece["broken"] for piece in pieces} == {None, "code_block"}
    assert pieces[0]["text"] == "Before.\n\n"


def test_nothing_of_nothing(server: Live) -> None:
    assert server.post("/v1/split", {"text": "", "max_tokens": 100}).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"text": "a"}, 400, "max_tokens"),
        ({"max_tokens": 100}, 400, "text"),
        ({"text": ["a"], "max_tokens": 100}, 400, "text"),
        ({"text": "a", "max_tokens": "100"}, 400, "max_tokens"),
        ({"text": "a", "max_tokens": 5}, 400, "max_tokens"),
        ({"text": "a", "max_tokens": 100, "overlap_tokens": 51}, 400, "overlap_tokens"),
        ({"text": "a", "max_tokens": 100, "overlap": 5}, 400, "overlap"),
        ({"text": "a", "max_tokens": 100, "model": "other"}, 404, "model"),
        ({"text": "word. " * (MAX_PIECES * 20), "max_tokens": 32}, 400, "max_tokens"),
    ],
)
def test_bad_requests_name_the_field(server: Live, body: dict[str, object], status: int, param: str) -> None:
    answer = server.post("/v1/split", body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    server.still_answers()


def test_the_document_is_not_repeated_in_an_error(server: Live) -> None:
    answer = server.post("/v1/split", {"text": "canary-7f3a " * 5, "max_tokens": 5})
    assert "canary" not in answer.text


def test_chats_go_on_beside_large_documents(server: Live) -> None:
    text = "A sentence of some words, and a clause. 一句话，然后。\n" * 15_000
    done: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: done.append(server.post("/v1/split", {"text": text, "max_tokens": 4000}).status_code)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    begin, num_chats = time.monotonic(), 0
    while any(thread.is_alive() for thread in threads):
        server.still_answers()
        num_chats += 1
    seconds = time.monotonic() - begin
    for thread in threads:
        thread.join()
    assert done == [200] * 3
    assert num_chats > 2 or seconds < 0.5
