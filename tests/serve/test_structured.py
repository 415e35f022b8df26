"""Structured output over HTTP: OpenAI's field, vLLM's fields, and what is refused, against a real server."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest

from tests.serve.test_end_to_end import QUESTION, Server, running

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "population": {"type": "integer", "maximum": 9999}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oag-") as name, running(Path(name)) as started:
        yield started


def post(server: Server, **fields: object) -> httpx.Response:
    body = {"messages": [QUESTION], "max_tokens": 200, "seed": 1, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_the_openai_package_gets_json_that_satisfies_its_schema(server):
    asked = {"model": "demo", "messages": [QUESTION], "max_tokens": 400, "seed": 3, "n": 2, "response_format": FORMAT}
    with server.client() as client:
        answer = client.chat.completions.create(**asked)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content or ""), CITY)
        texts = ["", ""]
        with client.chat.completions.create(**asked, stream=True) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


WANTED = {
    "json_object": ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
    "structured json": ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
    "structured choice": ({"structured_outputs": {"choice": ["<a>", "b c"]}}, "<a>|b c"),
    "structured regex": ({"structured_outputs": {"regex": r"v\d\.\d{2}"}}, r"v\d\.\d{2}"),
    "structured grammar": ({"structured_outputs": {"grammar": 'start: "x" %json {"type":"null"} "y"'}}, "xnully"),
    "structured json_object": ({"structured_outputs": {"json_object": True}}, r"\{.*\}"),
    "guided_json": ({"guided_json": '{"const": 7}'}, "7"),
    "guided_regex": ({"guided_regex": "[A-Z]{4}"}, "[A-Z]{4}"),
    "guided_choice": ({"guided_choice": ["yes", "no"]}, "yes|no"),
    "guided_grammar": ({"guided_grammar": 'start: a\na: "(" a ")" | "."'}, r"\(*\.\)*"),
    "text": ({"response_format": {"type": "text"}}, ".*"),
}


@pytest.mark.parametrize("name", WANTED)
def test_each_way_of_asking_is_honoured(server, name):
    fields, pattern = WANTED[name]
    choice = post(server, **fields).json()["choices"][0]
    assert choice["finish_reason"] == "stop" or name in ("text", "json_object", "structured json_object"), choice
    if choice["finish_reason"] == "stop":
        assert re.fullmatch(pattern, choice["message"]["content"], re.DOTALL)


def test_plain_completions_take_them_too(server):
    body = {"prompt": ["a", "b"], "max_tokens": 20, "guided_choice": ["yes", "no"], "n": 2}
    choices = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"]
    assert len(choices) == 4
    assert {choice["text"] for choice in choices} <= {"yes", "no"}


REFUSED = {
    "an unknown type": ({"response_format": {"type": "xml"}}, "response_format", "must be one of"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema"),
    "an unknown key": ({"response_format": {"type": "json_object", "x": 1}}, "response_format", "response_format.x"),
    "a structural tag": ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "structural_tag"),
    "two at once": ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "takes one"),
    "two fields": ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "send one"),
    "a regex of numbers": ({"structured_outputs": {"regex": 5}}, "structured_outputs", "must be text"),
    "a backend": ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend", "one way"),
    "a broken regex": ({"guided_regex": "(a"}, "guided_regex", "cannot be followed"),
    "broken json": ({"guided_json": "{"}, "guided_json", "is no JSON"),
    "an unknown keyword": (
        {"guided_json": {"type": "object", "dependentSchemas": {}}},
        "guided_json",
        "dependentSchemas",
    ),
    "no rules": ({"guided_grammar": "hello"}, "guided_grammar", "cannot be followed"),
    "a schema that is too large": ({"guided_json": {"enum": ["x" * 300_000]}}, "guided_json", "262144 are allowed"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(server, name, stream):
    fields, param, says = REFUSED[name]
    answer = post(server, **fields, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert says in error["message"]


def test_a_limit_is_an_error_of_its_own_code_and_counts_are_told(server):
    hostile = {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(30)]}
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[QUESTION], extra_body={"structured_outputs": {"json": hostile}}
        )
    assert caught.value.code == "constraint_limit_exceeded"
    assert caught.value.param == "structured_outputs"
    label = '{model_name="demo"}'
    assert server.metric(f"openautoglm_constraints_compiled_total{label}") > 0
    assert server.metric(f"openautoglm_constraints_refused_total{label}") > 0
    assert server.metric(f"openautoglm_constraint_masks_total{label}") > 0
    assert server.metric(f"openautoglm_constraint_mask_seconds_total{label}") > 0
    assert server.metric(f"openautoglm_constraints_live{label}") == 0


def test_the_record_tells_compiling_and_masks_apart(server):
    answer = post(server, guided_regex="[a-z]{12}").json()
    told = httpx.get(f"{server.url}/v1/requests/{answer['id']}/explain", timeout=10).json()
    text = json.dumps(told)
    assert re.search(r'"constraint_seconds": 0\.0*[1-9]', text), text
    assert re.search(r'"mask_seconds": [0-9.]*(e-\d+|[1-9])', text), text
