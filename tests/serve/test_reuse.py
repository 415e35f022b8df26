"""Pinned prompts, warm-up and slow start, as the HTTP process and a real server have them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openautoglm.checkpoint.hub import resolve
from openautoglm.engine.assemble import prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.errors import ConfigError, DoesNotFitError
from openautoglm.serve.keys import KeyRecord, Role, change_keys, key_digest
from openautoglm.serve.pinned import pin_prompts
from openautoglm.serve.slow_start import LEAST_WEIGHT, SlowStart
from openautoglm.serve.warmup import warm_up
from openautoglm.spec.goal import Goal
from openautoglm.spec.plan import Component
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.units import MIB
from tests.serve.live import Live
from tests.serve.test_end_to_end import Server, running

SYSTEM = "You know the Python standard library. Answer in short sentences, and never guess a name. " * 2
TENANTS = ("ann", "bob")


@pytest.fixture(scope="module")
def text() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    directory = resolve("demo")
    with ChatTemplate.from_directory(directory) as template:
        template.start()
        yield Tokenizer.from_directory(directory), template


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    """A server with a pinned prompt and two tenants, whose keys are their names."""
    with tempfile.TemporaryDirectory(prefix="oag-") as name:
        directory = Path(name)
        records = tuple(
            KeyRecord(name=tenant, roles=(Role.USER, Role.METRICS), sha256=key_digest(tenant).hex(), created=0)
            for tenant in TENANTS
        )
        change_keys(directory / "keys.json", lambda _: records)
        (directory / "system.txt").write_text(SYSTEM)
        arguments = ("--keys-file", str(directory / "keys.json"), "--pin-prompt", str(directory / "system.txt"))
        with running(directory, *arguments, "--context", "512", "--concurrency", "4") as server:
            yield server


def chat(served: Server, tenant: str, words: str, **fields: object) -> httpx.Response:
    messages = [{"role": "system", "content": SYSTEM.strip()}, {"role": "user", "content": words}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **fields}
    url = f"{served.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers={"Authorization": f"Bearer {tenant}"}, timeout=60)


def cached_tokens(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return number


def goal() -> Goal:
    return Goal(memory_bytes=500 * MIB, context_tokens=512, concurrency=2, num_threads=1)


def test_a_pinned_prompt_is_priced_and_holds_what_conversations_share(
    text: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    tokenizer, template = text
    plain = prepare(EngineOptions(model="demo", goal=goal()))
    (tmp_path / "one.txt").write_text(SYSTEM)
    (tmp_path / "two.json").write_text(json.dumps([{"role": "system", "content": SYSTEM.strip()}]))
    pinned = pin_prompts(plain, [tmp_path / "one.txt", tmp_path / "two.json"], tokenizer, template)
    prompts = pinned.options.pinned_prompts
    assert prompts[0] == prompts[1]
    messages = [{"role": "system", "content": SYSTEM.strip()}, {"role": "user", "content": "你好"}]
    conversation = tokenizer.encode(template.render(messages))
    assert tuple(conversation[: len(prompts[0])]) == prompts[0]
    num_blocks = 2 * (len(prompts[0]) // 16)
    assert num_blocks > 0
    assert pinned.plan.num_blocks == plain.plan.num_blocks + num_blocks
    block_bytes = plain.plan.breakdown.kv_bytes // plain.plan.num_blocks
    assert pinned.plan.breakdown.kv_bytes == plain.plan.breakdown.kv_bytes + num_blocks * block_bytes
    parts = {part.name: part.num_bytes for part in pinned.plan.breakdown.parts_of(Component.KV)}
    assert parts["pinned prompts"] == num_blocks * block_bytes
    assert sum(parts.values()) == pinned.plan.breakdown.kv_bytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"short", "too short"),
        ("b.txt", b"\xff\xfe", "malformed"),
        ("c.json", b"{", "malformed"),
        ("d.json", b'{"messages": [], "more": 1}', "unknown field"),
        ("e.json", b'[{"content": "no role"}]', "role"),
        ("f.json", b"[" + b" " * (2 << 20) + b"]", "larger than"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused(
    text: tuple[Tokenizer, ChatTemplate], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    prepared = prepare(EngineOptions(model="demo", goal=goal()))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        pin_prompts(prepared, [tmp_path / name], *text)
    with pytest.raises(ConfigError, match="No such file"):
        pin_prompts(prepared, [tmp_path / "missing"], *text)


def test_pinned_prompts_that_do_not_fit_are_refused_before_the_load(
    text: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    plain = prepare(EngineOptions(model="demo", goal=goal()))
    tight = goal_with(plain.plan.breakdown.total_bytes)
    (tmp_path / "long.txt").write_text(SYSTEM * 400)
    with pytest.raises(DoesNotFitError):
        pin_prompts(prepare(EngineOptions(model="demo", goal=tight)), [tmp_path / "long.txt"], *text)
    (tmp_path / "long.txt").write_text(SYSTEM * 30)
    with pytest.raises(ConfigError, match="context of 512"):
        pin_prompts(plain, [tmp_path / "long.txt"], *text)


def goal_with(memory_bytes: int) -> Goal:
    formats = prepare(EngineOptions(model="demo", goal=goal())).plan.formats
    return Goal(
        memory_bytes=memory_bytes, context_tokens=512, concurrency=2, num_threads=1, chunk_tokens=512,
        quant=formats.layers.number, kv=formats.kv,
    )  # fmt: skip


def test_tenants_share_pinned_prompts_and_nothing_else(served: Server) -> None:
    first = cached_tokens(chat(served, "ann", "What does textwrap.dedent do with the lines of a text?"))
    assert first > 0, "the pinned prompt is there before anybody asked"
    again = cached_tokens(chat(served, "ann", "What does textwrap.dedent do with the lines of a text?"))
    other = cached_tokens(chat(served, "bob", "What does textwrap.dedent do with the lines of a text?"))
    assert again > first == other
    # A client has no say in whose prefixes it sees.
    answer = chat(
        served, "bob", "What does textwrap.dedent do with the lines of a text? Now", namespace="ann", user="ann"
    )
    assert cached_tokens(answer) > other, "its own"
    answer = chat(served, "bob", "And what does shutil.which do on Windows?", namespace="ann", user="ann")
    assert cached_tokens(answer) == first


def test_a_session_belongs_to_its_tenant(served: Server) -> None:
    question = "Which module of the standard library reads files of comma-separated values?"
    assert chat(served, "ann", question, session_id="talk").status_code == 200
    again = cached_tokens(chat(served, "ann", question + " And writes?", session_id="talk"))
    other = cached_tokens(chat(served, "bob", question + " And writes?", session_id="talk"))
    assert again > other
    told = httpx.get(f"{served.url}/metrics", headers={"Authorization": "Bearer ann"}, timeout=10).text
    assert 'openautoglm_sessions{model_name="demo"} 2.0' in told
    assert 'openautoglm_resumed_sessions_total{model_name="demo"} 1.0' in told
    assert chat(served, "ann", question, session_id="").status_code == 400
    assert chat(served, "ann", question, session_id="x" * 129).status_code == 400


def test_no_request_is_counted_for_the_warm_up(served: Server) -> None:
    with_key = {"Authorization": "Bearer ann"}
    before = httpx.get(f"{served.url}/metrics", headers=with_key, timeout=10).text
    assert "openautoglm_slow_start_weight" in before
    assert 'openautoglm_http_requests_total{model_name="demo",path="/v1/completions"' not in before


def test_the_weight_rises_evenly_and_begins_again() -> None:
    now = 100.0
    start = SlowStart(20.0, clock=lambda: now)
    weights = []
    for now in (100.0, 101.0, 105.0, 115.0, 120.0, 500.0):  # noqa: B007
        weights.append(start.weight)
    assert weights == [LEAST_WEIGHT, LEAST_WEIGHT, 0.25, 0.75, 1.0, 1.0]
    start.begin()
    assert start.weight == LEAST_WEIGHT
    assert SlowStart(0.0, clock=lambda: now).weight == 1.0


def test_health_and_metrics_tell_the_weight(server: Live) -> None:
    answer = server.get("/health")
    assert answer.json()["weight"] == 1.0
    assert answer.headers["x-openautoglm-weight"] == "1.000"
    assert 'openautoglm_slow_start_weight{model_name="small"} 1.0' in server.get("/metrics").text
    server.engine.gone = True
    answer = server.get("/health")
    assert (answer.status_code, answer.json()["weight"], answer.headers["x-openautoglm-weight"]) == (503, 0.0, "0.000")
    assert 'openautoglm_slow_start_weight{model_name="small"} 0.0' in server.get("/metrics").text


def test_warming_up_is_not_counted_and_belongs_to_nobody(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    before = server.get("/metrics").text
    server.in_loop(warm_up(server.context))
    namespaces = {request.namespace for request in server.engine.requests}
    assert len(namespaces) == 1, "all of it by one tenant"
    assert not namespaces & {""}, "which is nobody's"
    assert len(server.engine.requests) == 16
    assert "rehearsal" not in caplog.text, "all of it was answered"
    assert _request_lines(server.get("/metrics").text) == _request_lines(before)
    server.still_answers()


def _request_lines(metrics: str) -> list[str]:
    """What is counted of requests at the edge; the question for metrics itself left out."""
    beside = ("/metrics", "process_", "_created", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    return [line for line in metrics.split("\n") if not any(name in line for name in beside)]
