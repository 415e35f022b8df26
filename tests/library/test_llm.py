"""The library, with the embedded model: what a Python caller sees."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import openautoglm
from openautoglm import LLM, SamplingParams
from openautoglm.errors import (
    ConfigError,
    ContextOverflowError,
    DoesNotFitError,
    EngineError,
    InvalidRequestError,
    MemoryPressureError,
)
from openautoglm.spec.pressure import Room
from openautoglm.units import GIB, MIB

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
PROMPTS = ["def main():", "import os\n", "class Shape:\n    def area(self"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", quant="int8", context=512, concurrency=4) as loaded:
        yield loaded


def test_generate_keeps_the_order_of_prompts(llm: LLM):
    together = llm.generate(PROMPTS, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in PROMPTS]
    assert [done.choices[0].tokens for done in together] == [done.choices[0].tokens for done in alone]
    assert len({done.text for done in together}) == len(PROMPTS)


def test_more_prompts_than_the_queue_holds(llm: LLM):
    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    done = llm.generate([[token] for token in range(20, 420)], sampling)
    assert len(done) == 400
    assert done[7].choices[0].tokens == llm.generate([[27]], sampling)[0].choices[0].tokens


def test_text_is_the_decoded_tokens(llm: LLM):
    choice = llm.generate(PROMPTS[0], GREEDY)[0].choices[0]
    assert choice.text == llm.tokenizer.decode(list(choice.tokens))
    assert choice.finish_reason in {"stop", "length"}


def test_stream_equals_generate(llm: LLM):
    assert "".join(llm.stream(PROMPTS[0], GREEDY)) == llm.generate(PROMPTS[0], GREEDY)[0].text


def test_chat_uses_the_template(llm: LLM):
    tokens = llm.render_chat([{"role": "user", "content": "Hello"}])
    text = llm.tokenizer.decode(list(tokens), skip_special_tokens=False)
    assert text == "[gMASK]<sop><|user|>\nHello<|assistant|>\n"
    assert llm.chat([{"role": "user", "content": "What does os.getcwd do?"}], GREEDY).text.strip()


def test_seeded_choices_differ_and_repeat(llm: LLM):
    sampling = SamplingParams(temperature=1.0, max_tokens=16, n=3, seed=11)
    first, again = (llm.generate(PROMPTS[0], sampling)[0] for _ in range(2))
    assert [choice.tokens for choice in first.choices] == [choice.tokens for choice in again.choices]
    assert len({choice.tokens for choice in first.choices}) == 3


def test_logprobs_are_ordered_and_belong_to_the_tokens(llm: LLM):
    sampling = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3)
    choice = llm.generate(PROMPTS[0], sampling)[0].choices[0]
    assert len(choice.logprobs) == len(choice.tokens)
    for token, entry in zip(choice.tokens, choice.logprobs, strict=True):
        assert entry.token == token == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] <= 0.0
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)


def test_the_second_call_reuses_the_prefix(llm: LLM):
    prompt = list(range(100, 180))
    first = llm.generate([prompt], GREEDY)[0]
    second = llm.generate([prompt], GREEDY)[0]
    assert second.cached_tokens == 64  # four whole blocks; the last token is always computed
    assert second.choices[0].tokens == first.choices[0].tokens


def test_threads_share_the_engine(llm: LLM):
    expected = {prompt: llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS}
    results: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda prompt=prompt: results.update({prompt: "".join(llm.stream(prompt, GREEDY))}))
        for prompt in PROMPTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == expected


def test_leaving_a_stream_early_frees_its_blocks(llm: LLM):
    stream = llm.stream(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True))
    next(stream)
    stream.close()
    llm.generate(PROMPTS[1], GREEDY)
    status = llm.engine_status()
    assert status.num_running == 0
    assert status.num_free_blocks + status.num_cached_blocks == status.num_blocks


def test_errors_name_what_is_wrong(llm: LLM):
    with pytest.raises(ContextOverflowError, match="512"):
        llm.generate([[5] * 600], GREEDY)
    with pytest.raises(InvalidRequestError, match="temperature"):
        SamplingParams(temperature=float("nan"))
    with pytest.raises(InvalidRequestError, match="one choice"):
        list(llm.stream("x", SamplingParams(n=2)))
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.generate([[]], GREEDY)
    with pytest.raises(ConfigError, match="quantum"):
        LLM("demo", quantum="int8")
    with pytest.raises(ConfigError, match="int9"):
        LLM("demo", quant="int9")
    assert llm.generate(PROMPTS[0], GREEDY)[0].text


@pytest.mark.parametrize("prompts", [None, 5, [1.5], [None], [b"x"], {"a": 1}, [{"role": "user", "content": "x"}]])
def test_what_is_no_prompt_is_named(llm: LLM, prompts: object):
    with pytest.raises(InvalidRequestError, match="prompts must be text"):
        llm.generate(prompts)  # type: ignore[arg-type]


def test_what_is_no_conversation_is_named(llm: LLM):
    for messages in ("Hello", ["Hello"], None):
        with pytest.raises(InvalidRequestError, match="messages must be a list"):
            llm.chat(messages)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="must be SamplingParams, got dict"):
        llm.generate("x", {"max_tokens": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["context", "concurrency", "group", "threads"])
def test_numbers_given_as_text_are_named(setting: str):
    with pytest.raises(ConfigError, match=f"{setting} must be an integer, got '8'"):
        openautoglm.plan("demo", **{setting: "8"})  # type: ignore[arg-type]


def test_a_closed_model_says_so():
    loaded = LLM("demo", quant="int8", context=128, concurrency=1)
    loaded.close()
    loaded.close()
    with pytest.raises(EngineError, match="closed"):
        loaded.generate("x", GREEDY)


def test_plan_is_what_the_model_was_loaded_with(llm: LLM):
    plan = openautoglm.plan("demo", quant="int8", context=512, concurrency=4)
    assert plan.breakdown == llm.plan.breakdown
    with pytest.raises(DoesNotFitError, match="--context"):
        openautoglm.plan("demo", memory="300MiB", context=2048, concurrency=4096)


def test_the_receipt_accounts_for_memory(llm: LLM):
    for word in ("planned", "measured", "unaccounted"):
        assert word in llm.receipt


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_memory_is_watched_and_its_loss_changes_no_token():
    sampling = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    prompts = [list(range(100 + 40 * index, 130 + 40 * index)) for index in range(8)]
    with LLM("demo", quant="int8", context=512, concurrency=8) as model:
        calm = model.generate(prompts, sampling)
        assert all(done.rungs == () for done in calm)
        report = model.memory()
        assert report.rung == "none"
        assert report.tree_bytes <= report.budget_bytes == report.planned_bytes
        probe = model._watch._probe
        look = probe.sample
        # Another process takes nearly all of the machine, as far as the probe tells; all else is real.
        tight = Room(source="machine", limit_bytes=GIB, left_bytes=MIB)
        probe.sample = lambda budget: replace(look(budget), rooms=(tight,))
        wait_for(lambda: model.memory().rung == "refuse")
        with pytest.raises(MemoryPressureError):
            model.generate(prompts, sampling)
        assert model.memory().pool_blocks < report.pool_blocks
        probe.sample = look
        wait_for(lambda: model.memory().rung == "none" and model.memory().pool_blocks == report.pool_blocks)
        assert [one.choices for one in model.generate(prompts, sampling)] == [one.choices for one in calm]
        assert model.engine_status().rung_transitions["refuse"] == 1


def test_pressure_in_the_middle_of_requests_reaches_them():
    sampling = SamplingParams(temperature=0.0, max_tokens=450, ignore_eos=True)
    prompts = [list(range(100 + 40 * index, 130 + 40 * index)) for index in range(8)]
    with LLM("demo", quant="int8", context=512, concurrency=8) as model:
        calm = model.generate(prompts, sampling)
        probe = model._watch._probe
        look = probe.sample
        tight = Room(source="machine", limit_bytes=GIB, left_bytes=MIB)

        def squeeze() -> None:
            wait_for(lambda: model.engine_status().num_running == 8)
            probe.sample = lambda budget: replace(look(budget), rooms=(tight,))

        reached: set[str] = set()
        for _ in range(5):  # the thread that looks may come when only one request is left, which always goes on
            squeezing = threading.Thread(target=squeeze)
            squeezing.start()
            pressed = model.generate(prompts, sampling)
            squeezing.join()
            probe.sample = look
            assert [one.choices for one in pressed] == [one.choices for one in calm]
            reached.update(rung for one in pressed for rung in one.rungs)
            if "preempt" in reached:
                break
            wait_for(lambda: model.engine_status().rung == 0)
    assert "preempt" in reached


def test_a_budget_can_be_announced_to_the_library():
    with LLM("demo", quant="int8", context=512, concurrency=4) as model:
        before = model.memory()
        breakdown = model.plan.breakdown
        least = breakdown.total_bytes - breakdown.kv_bytes + 8 * before.block_bytes
        after = model.memory(least)
        assert after.budget_bytes == least
        assert after.pool_blocks == 8 < before.pool_blocks
        with pytest.raises(InvalidRequestError, match="at least"):
            model.memory(1)
        assert model.memory(before.budget_bytes).pool_blocks == before.pool_blocks
    with pytest.raises(EngineError, match="closed"):
        model.memory()


def test_a_model_that_is_dropped_ends_its_thread():
    def watching() -> int:
        return sum(thread.name == "openautoglm-memory" for thread in threading.enumerate())

    before = watching()
    model = LLM("demo", quant="int8", context=128, concurrency=1)
    assert watching() == before + 1
    del model
    gc.collect()
    assert watching() == before
