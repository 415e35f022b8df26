"""/v1/responses: what the openai package reads, whole and streamed; what is kept, for whom, and for how long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from openautoglm.errors import OverloadedError
from openautoglm.memory.ledger import Ledger
from openautoglm.serve.access import AccessOptions
from openautoglm.serve.response_store import ResponseStore, StoredResponse
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.small_engine import CACHED_TOKENS, overloaded
from tests.serve.test_access import write_keys

PATH = "/v1/responses"


def create(server: Live, key: str = "EMPTY", **fields: Any) -> Response:
    response: Response = server.client(key).responses.create(**{"model": "small", "input": "hello", **fields})
    return response


def prompt_of(server: Live) -> str:
    return server.tokenizer.decode(server.engine.requests[-1].prompt_tokens, skip_special_tokens=False)


def test_a_whole_response_as_the_client_reads_it(server: Live) -> None:
    response = create(server, instructions="be kind", max_output_tokens=60, metadata={"a": "b"}, temperature=0.5)
    assert response.id.startswith("resp_")
    assert response.output_text == "0:be kindhello"
    assert (response.status, response.object, response.model) == ("completed", "response", "small")
    assert response.output[0].to_dict() == {
        "type": "message",
        "id": response.id.replace("resp_", "msg_"),
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "0:be kindhello", "annotations": [], "logprobs": []}],
    }
    assert (response.instructions, response.max_output_tokens, response.temperature) == ("be kind", 60, 0.5)
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    num_prompt = len(server.tokenizer.encode("<|system|>be kind<|user|>hello<|assistant|>"))
    assert response.usage.input_tokens == num_prompt
    assert response.usage.input_tokens_details.cached_tokens == CACHED_TOKENS
    assert response.usage.output_tokens == len(server.tokenizer.encode("0:be kindhello")) + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_the_events_of_a_stream(server: Live) -> None:
    events = [event.to_dict() for event in create(server, stream=True)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events if event["type"] != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "0:hello"
    assert len(deltas) > 1
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert last["status"] == "completed"
    assert last["output"][0]["content"][0]["text"] == "0:hello"
    whole = create(server).to_dict()
    assert last["usage"] == whole["usage"]
    assert last.keys() == whole.keys()


def test_the_clients_own_stream_helper(server: Live) -> None:
    with server.client().responses.stream(model="small", input="hello") as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_text == "0:hello"
    assert "response.completed" in kinds


def test_a_response_that_is_cut_says_so(server: Live) -> None:
    response = create(server, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    *_, last = create(server, max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


def test_items_become_messages(server: Live) -> None:
    items = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bonn"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wet"}]},
        {"role": "user", "content": "so?"},
    ]
    create(server, input=items)
    text = (
        '<|system|>short<|user|>weather?<|assistant|>{"city": "Bonn"}<|user|>rain<|assistant|>wet'
        "<|user|>so?<|assistant|>"
    )
    assert prompt_of(server) == text
    counted = server.client().responses.input_tokens.count(model="small", input=items)  # type: ignore[arg-type]
    assert counted.input_tokens == len(server.tokenizer.encode(text))


def test_nothing_is_kept_unless_asked_for(server: Live) -> None:
    response = create(server)
    assert response.model_extra is not None
    assert response.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        server.client().responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        create(server, previous_response_id=response.id)
    assert server.context.intake.answers.in_use_bytes == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on(server: Live, stream: bool) -> None:
    first = create(server, instructions="be kind", store=True, stream=stream)
    if stream:
        *_, last = first
        first = last.response  # type: ignore[attr-defined]
    client = server.client()
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = create(server, input="more", previous_response_id=first.id, store=True)
    assert prompt_of(server) == "<|user|>hello<|assistant|>0:be kindhello<|user|>more<|assistant|>"
    assert second.previous_response_id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    create(server, input="and", previous_response_id=second.id)
    assert prompt_of(server).endswith("<|user|>more<|assistant|>" + second.output_text + "<|user|>and<|assistant|>")
    client.responses.delete(second.id)
    assert server.context.intake.answers.in_use_bytes == 0


def test_no_tenant_sees_anothers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.json", "user", "both")
    with live_server(tokenizer, access=AccessOptions(keys_file=file)) as server:
        kept = create(server, "user", store=True)
        assert server.client("user").responses.retrieve(kept.id).id == kept.id
        for attempt in (
            lambda: server.client("both").responses.retrieve(kept.id),
            lambda: server.client("both").responses.delete(kept.id),
            lambda: create(server, "both", previous_response_id=kept.id),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        assert server.client("user").responses.retrieve(kept.id).id == kept.id


def test_what_is_kept_is_forgotten_in_time_and_beyond_its_number(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, max_stored_responses=2, stored_seconds=1.0) as server:
        client = server.client()
        names = [create(server, store=True).id for _ in range(3)]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(names[0])
        assert client.responses.retrieve(names[2]).id == names[2]
        assert server.context.intake.answers.in_use_bytes > 0
        deadline = time.monotonic() + 10
        while server.context.intake.answers.in_use_bytes and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.context.intake.answers.in_use_bytes == 0
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(names[2])


def test_a_client_that_leaves_keeps_no_room(server: Live) -> None:
    server.engine.seconds_per_token = 0.05
    with server.client().responses.create(model="small", input="hello " * 20, store=True, stream=True) as stream:
        next(iter(stream))
        assert server.context.intake.answers.in_use_bytes > 0
    server.wait_until_idle()
    deadline = time.monotonic() + 5
    while server.context.intake.answers.in_use_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.context.intake.answers.in_use_bytes == 0


def test_a_refused_request_keeps_no_room(server: Live) -> None:
    server.engine.refuse = overloaded()
    assert server.post(PATH, {"input": "x", "store": True}).status_code == 429
    assert server.post(PATH, {"input": "x", "store": True, "temperature": -1}).status_code == 400
    assert server.context.intake.answers.in_use_bytes == 0


def test_a_failure_in_mid_stream_is_raised(server: Live) -> None:
    server.engine.fail_after_tokens = 2
    with pytest.raises(openai.APIError, match="out of memory"):
        list(create(server, stream=True, store=True))
    server.wait_until_idle()
    assert server.context.intake.answers.in_use_bytes == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": ""}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 3}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_is_refused_is_named(server: Live, fields: dict[str, object], named: str) -> None:
    response = server.post(PATH, {"input": "hello", **fields})
    assert response.status_code == (404 if named == "previous_response_id" else 400), response.text
    assert response.json()["error"]["param"] == named
    assert not server.engine.requests


def test_what_asks_for_nothing_is_taken(server: Live) -> None:
    fields = {
        "background": False, "include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}},
        "tools": [], "stream_options": {"include_obfuscation": False}, "parallel_tool_calls": True,
        "truncation": "disabled",
        "reasoning": {"effort": None}, "safety_identifier": "x", "tool_choice": "auto",
    }  # fmt: skip
    answer = server.post(PATH, {"input": "hello", **fields}).json()
    assert answer["status"] == "completed"
    assert "openautoglm" not in answer


def test_input_that_may_be_cut_is(server: Live) -> None:
    long = "word " * 300
    assert server.post(PATH, {"input": long, "max_output_tokens": 8}).status_code == 400
    answer = server.post(PATH, {"input": long, "max_output_tokens": 8, "truncation": "auto"}).json()
    assert answer["openautoglm"]["truncated"][0]["side"] == "head"


@pytest.fixture
def store() -> tuple[ResponseStore, Ledger]:
    ledger = Ledger(64 * 1024, domain="answers")
    return ResponseStore(ledger, max_responses=100, seconds=60), ledger


async def _keep(store: ResponseStore, tenant: str, name: str, size: int) -> None:
    store.begin(size).finish(tenant, name, StoredResponse(response=b"x" * size, messages=b"[]"))


def test_the_store_drops_of_whoever_has_most(store: tuple[ResponseStore, Ledger]) -> None:
    kept, ledger = store

    async def fill() -> None:
        await _keep(kept, "small", "s", 1000)
        for index in range(20):
            await _keep(kept, "large", str(index), 2000)
        assert kept.num_bytes <= ledger.budget_bytes // 4
        assert kept.num_bytes == ledger.in_use_bytes
        assert kept.find("small", "s") is not None
        assert kept.find("large", "0") is None
        assert kept.find("large", "19") is not None
        with pytest.raises(OverloadedError, match="no room to keep it"):
            kept.begin(17 * 1024)

    asyncio.run(fill())


def test_the_store_gives_way_to_answers_that_fill_the_ledger(store: tuple[ResponseStore, Ledger]) -> None:
    kept, ledger = store

    async def fill() -> None:
        await _keep(kept, "a", "1", 1000)
        answers = ledger.reserve("answer", ledger.free_bytes)
        await _keep(kept, "a", "2", 900)
        assert kept.find("a", "1") is None
        with pytest.raises(OverloadedError):
            kept.begin(5000)
        answers.release()

    asyncio.run(fill())
