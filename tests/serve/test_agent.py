"""Agents as clients of `openautoglm serve demo`: calls that are required, and the phone agent's loop.

The embedded model knows nothing of tools or phones: constraints make it write what a larger one would.
"""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_end_to_end import Server, running

CITIES = ["Rome", "Oslo"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of some days",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": CITIES}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
QUESTION = {"role": "user", "content": "What is the weather in Rome?"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oag-") as name, running(Path(name)) as started:
        yield started


def ask(server: Server, **fields: Any) -> Any:
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [QUESTION],
        "tools": [WEATHER, CLOCK],
        "temperature": 0,
        "max_tokens": 400,
        **fields,
    }
    return server.client().chat.completions.create(**body)


def check_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "get_weather":
        assert given.keys() == {"city", "days"}
        assert given["city"] in CITIES
        assert 1 <= given["days"] <= 9
    else:
        assert (name, given) == ("get_time", {})


def test_a_required_call_comes_and_its_result_goes_back(server: Server) -> None:
    choice = ask(server, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    check_call(call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [QUESTION, choice.message, result]
    assert ask(server, messages=history, max_tokens=8).choices[0].finish_reason == "length"


def test_named_and_parallel_calls_in_a_stream(server: Server) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for tool_choice, most in ((named, 1), ("required", 8)):
        chunks = list(ask(server, tool_choice=tool_choice, stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert 1 <= len(calls) <= most
        assert [call.index for call in calls] == list(range(len(calls)))
        for call in calls:
            check_call(call.function.name, call.function.arguments)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert most > 1 or calls[0].function.name == "get_weather"


def test_a_format_that_the_model_is_not_shown_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="takes no tools"), running(tmp_path, "--tool-parser", "glm45"):
        pass


class Phone:
    """What the agent acts on: it has an icon, and behind it a page."""

    def __init__(self) -> None:
        self.page = "home"
        self.actions: list[dict[str, object]] = []

    def act(self, action: dict[str, object]) -> None:
        self.actions.append(action)
        self.page = "home" if action["action"] == "Home" else "settings"

    def look(self) -> str:
        return f"The screen shows the page {self.page}."


def parse_action(text: str) -> dict[str, object]:
    """Read `do(action=…)` or `finish(message=…)` as the agent does."""
    begin = max(text.find("do(action="), text.find("finish(message="))
    assert begin >= 0, text
    call = ast.parse(text[begin:].strip(), mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    return {"_metadata": call.func.id} | {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


ACTIONS = [
    r'do\(action="Tap", element=\[[1-9][0-9]{0,2}, ?[1-9][0-9]{0,2}\]\)',
    r'do\(action="Home"\)',
]
FINISH = r'finish\(message="[A-Za-z ]{1,24}"\)'


def test_the_phone_agent_works_until_it_finishes(server: Server) -> None:
    client, phone = server.client(), Phone()
    messages: list[dict[str, object]] = [
        {"role": "system", "content": 'You act on a phone by do(action="…", …) and end by finish(message="…").'}
    ]
    for step in range(6):
        observation = [{"type": "text", "text": f"Open the settings.\n{phone.look()}"}]
        messages.append({"role": "user", "content": observation})
        # A model that cannot see would never finish by itself: it must after some steps.
        pattern = FINISH if step == 3 else "|".join(ACTIONS)
        chunks = client.chat.completions.create(
            model="demo", messages=messages, stream=True, max_tokens=300, temperature=0.0, top_p=0.85,  # type: ignore[arg-type]
            frequency_penalty=0.2, extra_body={"guided_regex": pattern, "skip_special_tokens": False},
        )  # fmt: skip
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        messages.append({"role": "assistant", "content": f"<answer>{content}</answer>"})
        action = parse_action(content)
        if action["_metadata"] == "finish":
            break
        phone.act(action)
    assert action["_metadata"] == "finish"
    assert isinstance(action["message"], str)
    assert [known["action"] in ("Tap", "Home") for known in phone.actions] == [True] * 3
    assert len(messages) == 9
