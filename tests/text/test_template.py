"""Chat templates: transformers' rendering, found where checkpoints keep them, harmless whatever they try."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from openautoglm.errors import InvalidRequestError, TemplateError
from openautoglm.text.template import MAX_TEMPLATE_BYTES, ChatTemplate
from openautoglm.text.template_process import TemplateLimits
from openautoglm.units import MIB
from tests.text.fixtures import TEMPLATES, byte_level

HELLO: list[dict[str, object]] = [{"role": "user", "content": "hello"}]
TOOL: dict[str, object] = {
    "type": "function",
    "function": {"name": "天气", "description": "<b>\"weather\" & 'more'</b>", "parameters": {"type": "object"}},
}
CONVERSATIONS: dict[str, list[dict[str, object]]] = {
    "one turn": HELLO,
    "with system": [{"role": "system", "content": " You are <b>kind</b> & brief.\n"}, *HELLO],
    "turns": [
        {"role": "user", "content": "1 < 2?\n\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.", "tool_calls": None},
        {"role": "user", "content": "你好 😀"},
    ],
    "reasoning": [*HELLO, {"role": "assistant", "content": "hi", "reasoning": "greet back"}],
}


def make(template: str, limits: TemplateLimits | None = None) -> ChatTemplate:
    return ChatTemplate({"default": template}, limits=limits)


@pytest.mark.parametrize("conversation", list(CONVERSATIONS))
@pytest.mark.parametrize("family", list(TEMPLATES))
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False, "date_string": "1 Jan 2026"}])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_rendering_equals_transformers(
    family: str,
    conversation: str,
    variables: dict[str, object],
    tools: list[dict[str, object]] | None,
    renderers: dict[str, ChatTemplate],
) -> None:
    oracle = PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    messages = CONVERSATIONS[conversation]
    for add_generation_prompt in (False, True):
        expected = oracle.apply_chat_template(
            messages,
            tools=tools,
            chat_template=TEMPLATES[family],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        rendered = renderers[family].render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
        )
        assert rendered == expected


@pytest.fixture(scope="module")
def renderers() -> Iterator[dict[str, ChatTemplate]]:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    made = {name: ChatTemplate({"default": text}, special_tokens=special) for name, text in TEMPLATES.items()}
    yield made
    for template in made.values():
        template.close()


def test_the_message_of_raise_exception_reaches_the_user(renderers: dict[str, ChatTemplate]) -> None:
    messages = [{"role": "assistant", "content": "I begin"}, *HELLO]
    with pytest.raises(TemplateError, match="refuses these messages: Conversation roles must alternate"):
        renderers["mistral"].render(messages)


HOSTILE = {
    "endless loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "more than its 0.3 s of processor time",
    ),
    "endless loop in native code": (
        "{{ (messages[0].content * 20000000).count('hellp') + (messages[0].content * 20000000).count('hell0') }}",
        "of processor time",
    ),
    "long output": ("{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}", "limit of 1048576 characters"),
    "memory": ("{{ 'a' * 10 ** 9 }}", "limit of 512 MiB of memory"),
    "memory by formatting": ("{{ '%999999999d' % 1 }}", "of memory"),
    "large range": ("{{ range(10 ** 9) | list }}", "Range too big"),
    "class of a string": ("{{ ''.__class__.__mro__ }}", "sandbox does not allow"),
    "globals of a helper": ("{{ raise_exception.__globals__.os }}", "sandbox does not allow"),
    "globals of the cycler": ("{{ cycler.__init__.__globals__.os }}", "sandbox does not allow"),
    "format string": ("{{ '{0.__class__.__mro__}'.format(1) }}", "sandbox does not allow"),
    "type of dict": ("{{ dict.__class__.mro() }}", "sandbox does not allow"),
    "attribute of a namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "takes no attribute"),
    "change of the messages": ("{{ messages.append(1) }}", "sandbox does not allow"),
    "syntax": ("{% for", "TemplateSyntaxError"),
    "deep": ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "the chat template|process that renders"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "missing variable": ("{{ nothing.there }}", "UndefinedError"),
    "include": ("{% include '/etc/passwd' %}", "the chat template failed"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_template_is_a_typed_error_and_the_next_rendering_works(name: str) -> None:
    source, expected = HOSTILE[name]
    switch = "{% if messages[0].content == 'ok' %}fine{% else %}" + source + "{% endif %}"
    # What does not parse cannot be switched off.
    template = source if name in ("syntax", "deep") else switch
    with make(template, TemplateLimits(cpu_seconds=0.3)) as hostile:
        with pytest.raises(TemplateError, match=expected):
            hostile.render(HELLO)
        if template is switch:
            assert hostile.render([{"role": "user", "content": "ok"}]) == "fine"


def test_a_stopped_worker_is_replaced_after_the_wall_clock_limit() -> None:
    with make("{{ messages[0].content }}", TemplateLimits(wall_seconds=1.0)) as template:
        assert template.render(HELLO) == "hello"
        first = template.worker_pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(TemplateError, match="did not finish within 1 s"):
            template.render(HELLO)
        assert template.render(HELLO) == "hello"
        assert template.worker_pid != first
    assert_gone(first)


def test_a_worker_killed_while_idle_costs_no_request() -> None:
    with make("{{ messages[0].content }}") as template:
        template.render(HELLO)
        assert template.worker_pid is not None
        os.kill(template.worker_pid, signal.SIGKILL)
        time.sleep(0.1)
        assert template.render(HELLO) == "hello"


def test_the_worker_is_started_once_quickly_and_ends_with_close() -> None:
    template = make("{{ messages[0].content }}")
    assert template.worker_pid is None
    template.render(HELLO)
    worker = template.worker_pid
    template.render(HELLO)
    assert worker is not None
    assert template.worker_pid == worker
    template.close()
    template.close()
    assert_gone(worker)
    with pytest.raises(TemplateError, match="closed"):
        template.render(HELLO)


def test_the_worker_can_be_started_ahead() -> None:
    with make("{{ messages[0].content }}") as template:
        template.start()
        worker = template.worker_pid
        assert worker is not None
        assert template.render(HELLO) == "hello"
        assert template.worker_pid == worker
    with ChatTemplate({}) as nothing:
        nothing.start()
        assert nothing.worker_pid is None


def test_the_worker_starts_within_a_fraction_of_a_second() -> None:
    def start() -> float:
        begin = time.perf_counter()
        with make("x") as template:
            template.render(HELLO)
        return time.perf_counter() - begin

    # The best of several: other work on the machine only adds.
    assert min(start() for _ in range(5)) < 0.3


def test_the_worker_dies_with_its_parent() -> None:
    program = (
        "import os, signal\n"
        "from openautoglm.text.template import ChatTemplate\n"
        "template = ChatTemplate({'default': 'x'})\n"
        "template.render([{'role': 'user', 'content': 'x'}])\n"
        "print(template.worker_pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert_gone(int(parent.stdout))


def test_the_worker_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAUTOGLM_API_KEY", "canary-of-the-key")
    with make("x") as template:
        template.render(HELLO)
        environment = Path(f"/proc/{template.worker_pid}/environ").read_bytes()
    assert b"canary-of-the-key" not in environment


def test_renderings_from_many_threads_do_not_mix() -> None:
    with make("{{ messages[0].content }}") as template:
        wrong: list[str] = []

        def render(index: int) -> None:
            for turn in range(50):
                text = f"{index}-{turn}"
                if template.render([{"role": "user", "content": text}]) != text:
                    wrong.append(text)

        threads = [threading.Thread(target=render, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_long_messages_may_pass_the_output_limit() -> None:
    text = "字" * (2 * MIB)
    with make("<{{ messages[0].content }}>") as template:
        assert template.render([{"role": "user", "content": text}]) == f"<{text}>"


def test_no_template_is_a_clear_statement(tmp_path: Path) -> None:
    with ChatTemplate.from_directory(tmp_path) as template:
        assert not template.exists
        with pytest.raises(TemplateError, match=r"no chat template.*/v1/completions"):
            template.render(HELLO)


def test_where_templates_are_found(tmp_path: Path) -> None:
    def rendered(tools: list[dict[str, object]] | None = None) -> str:
        with ChatTemplate.from_directory(tmp_path) as template:
            return template.render(HELLO, tools=tools)

    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "plain {{ bos_token }}"}))
    assert rendered() == "plain <s>"
    named = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "with tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert rendered() == "named"
    assert rendered([TOOL]) == "with tools"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json file"}))
    assert rendered() == "json file"
    (tmp_path / "chat_template.jinja").write_text("jinja file")
    assert rendered() == "jinja file"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"chat_template": 3}, "must be text, or a list"),
        ({"chat_template": [{"name": "default"}]}, "must be text, or a list"),
        ({"chat_template": "x" * (MAX_TEMPLATE_BYTES + 1)}, "1.00 MiB"),
    ],
)
def test_malformed_files_are_typed_errors(tmp_path: Path, config: dict[str, object], expected: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TemplateError, match=expected):
        ChatTemplate.from_directory(tmp_path)


def test_only_a_rag_template_is_named(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "rag", "template": "x"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with ChatTemplate.from_directory(tmp_path) as template, pytest.raises(TemplateError, match="none named 'default'"):
        template.render(HELLO)


def test_requests_cannot_replace_the_messages() -> None:
    with make("x") as template:
        with pytest.raises(InvalidRequestError, match="cannot set messages"):
            template.render(HELLO, variables={"messages": []})
        with pytest.raises(InvalidRequestError, match="messages is empty"):
            template.render([])


def assert_gone(pid: int) -> None:
    """Wait until the process has ended (a zombie that its new parent has not reaped yet has ended too)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")
