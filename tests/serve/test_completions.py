"""/v1/completions: prompts of every kind, echo, logprobs, streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openautoglm.engine.client import TokenLogprob
from openautoglm.serve.logprobs import CompletionLogprobs
from tests.serve.live import Live, events_of


def complete(server: Live, prompt: object, **fields: object) -> dict[str, Any]:
    response = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 40, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_prompt_of_every_kind(server: Live) -> None:
    tokens = [server.tokenizer.encode(text) for text in ("ab", "cd")]
    assert [choice["text"] for choice in complete(server, "ab")["choices"]] == ["0:ab"]
    assert [choice["text"] for choice in complete(server, ["ab", "cd"])["choices"]] == ["0:ab", "0:cd"]
    assert [choice["text"] for choice in complete(server, tokens[0])["choices"]] == ["0:ab"]
    assert [choice["text"] for choice in complete(server, tokens)["choices"]] == ["0:ab", "0:cd"]


def test_choices_stand_prompt_by_prompt(server: Live) -> None:
    answer = complete(server, ["ab", "cd"], n=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "0:ab"), (1, "1:ab"), (2, "0:cd"), (3, "1:cd"),
    ]  # fmt: skip
    assert answer["object"] == "text_completion"
    # Each prompt counts once, each choice by itself.
    prompt_tokens = sum(len(server.tokenizer.encode(text, add_special_tokens=True)) for text in ("ab", "cd"))
    assert answer["usage"]["prompt_tokens"] == prompt_tokens
    assert answer["usage"]["completion_tokens"] == 4 * (len(server.tokenizer.encode("0:ab")) + 1)


def test_special_tokens_are_put_before_text_but_not_before_tokens(server: Live) -> None:
    bos = server.tokenizer.token_id("<|endoftext|>")
    complete(server, "ab")
    assert server.engine.requests[-1].prompt_tokens[0] == bos
    complete(server, "ab", add_special_tokens=False)
    assert server.engine.requests[-1].prompt_tokens[0] != bos
    complete(server, [5, 6])
    assert server.engine.requests[-1].prompt_tokens == (5, 6)


def test_the_default_is_sixteen_tokens(server: Live) -> None:
    server.post("/v1/completions", {"prompt": "ab"})
    assert server.engine.requests[-1].sampling.max_tokens == 16


def test_echo_puts_the_prompt_before_the_answer(server: Live) -> None:
    assert complete(server, "ab ", echo=True)["choices"][0]["text"] == "ab 0:ab "
    tokens = server.tokenizer.encode("ab ")
    assert complete(server, tokens, echo=True)["choices"][0]["text"] == "ab 0:ab "
    response = server.post("/v1/completions", {"prompt": "ab ", "echo": True, "stream": True})
    chunks = [json.loads(data) for data in events_of(response.text)[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ab 0:ab "


def test_logprobs_as_parallel_lists(server: Live) -> None:
    choice = complete(server, "a 你", logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert len(set(map(len, logprobs.values()))) == 1
    assert logprobs["token_logprobs"] == [-0.5] * len(logprobs["tokens"])
    assert all(len(top) <= 2 and max(top.values()) == -0.5 for top in logprobs["top_logprobs"])
    # An offset is where the token's text begins; a token that only continues a character begins where that does.
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["text_offset"][-1] == len(choice["text"])
    response = server.post("/v1/completions", {"prompt": "a 你", "logprobs": 2, "max_tokens": 40, "stream": True})
    chunks = [json.loads(data)["choices"][0] for data in events_of(response.text)[:-1]]
    for name, whole in logprobs.items():
        assert [item for chunk in chunks for item in (chunk["logprobs"] or {name: []})[name]] == whole


def test_the_chosen_token_is_among_the_best(server: Live) -> None:
    """Scores of a given text are read from there: OpenAI promises it, even where the best are others."""
    chosen = TokenLogprob(token=5, logprob=-3.0, top=((7, -0.5), (9, -1.0)))
    written = CompletionLogprobs(server.tokenizer, skip_special_tokens=True).take([chosen])
    text = server.tokenizer.token_text
    assert written["top_logprobs"] == [{text(5): -3.0, text(9): -1.0, text(7): -0.5}]
    none = CompletionLogprobs(server.tokenizer, skip_special_tokens=True)
    assert none.take([TokenLogprob(token=5, logprob=-3.0, top=())])["top_logprobs"] == [{text(5): -3.0}]


def test_a_stream_ends_with_usage_and_done(server: Live) -> None:
    body = {"prompt": ["ab", "cd"], "stream": True, "stream_options": {"include_usage": True}}
    data = events_of(server.post("/v1/completions", body).text)
    assert data[-1] == "[DONE]"
    chunks = [json.loads(one) for one in data[:-1]]
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "0:ab", 1: "0:cd"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_package_reads_it(server: Live, stream: bool) -> None:
    answer = server.client().completions.create(model="small", prompt="ab", stream=stream)
    if stream:
        assert "".join(chunk.choices[0].text for chunk in answer) == "0:ab"  # type: ignore[union-attr]
    else:
        assert answer.choices[0].text == "0:ab"  # type: ignore[union-attr]


def test_the_openai_package_lists_models(server: Live) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["small", "org/alias"]
    assert client.models.retrieve("org/alias").id == "org/alias"


def test_tokens_there_and_back(server: Live) -> None:
    answer = server.post("/tokenize", {"prompt": "a 你", "return_token_strs": True}).json()
    assert answer["tokens"] == server.tokenizer.encode("a 你", add_special_tokens=True)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 512)
    assert len(answer["token_strs"]) == answer["count"]
    plain = server.post("/tokenize", {"prompt": "a 你", "add_special_tokens": False}).json()
    assert server.post("/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": "a 你"}
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["tokens"] == server.tokenizer.encode("<|user|>x<|assistant|>")
