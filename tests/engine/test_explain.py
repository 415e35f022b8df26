"""Records of requests against an engine on a clock of its own, their text, and the bound of the history."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.explain import ENTRY_BYTES, RequestHistory, explain_text, rung_labels
from openautoglm.engine.record import ChoiceRecord, RequestRecord
from openautoglm.spec.pressure import Rung
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import make_engine
from tests.engine.test_gate import Clock, SlowExecutor


def record_of(name: str, *, error: str | None = None, num_choices: int = 1) -> RequestRecord:
    choices = tuple(
        ChoiceRecord(
            choice=choice, finish_reason="stop", completion_tokens=7, queue_seconds=0.5, prefill_seconds=0.25,
            decode_seconds=1.0, preempted_seconds=0.0, spilled_seconds=0.0, num_preemptions=0, num_spills=0,
        )
        for choice in range(num_choices)
    )  # fmt: skip
    return RequestRecord(
        request_id=name, prompt_tokens=3, cached_tokens=1, total_seconds=1.75, rungs=(), choices=choices, error=error
    )


def test_a_record_tells_where_the_time_went() -> None:
    clock = Clock()
    engine = make_engine(SlowExecutor(clock), clock=clock, max_running=1)
    for name, tokens in (("first", 4), ("second", 3)):
        sampling = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
        engine.add(GenerationRequest(request_id=name, prompt_tokens=(2, 3), sampling=sampling, deadline_seconds=60.0))
    engine.step()
    running = engine.explain("second")
    assert running is not None
    assert running.choices[0].finish_reason is None
    assert running.choices[0].queue_seconds == 1.0
    while engine.has_work:
        engine.step()
    first, second = engine.explain("first"), engine.explain("second")
    assert first is not None
    assert second is not None
    # A step is a second: one for the prompt and its first token, one for each token more.
    assert (first.choices[0].queue_seconds, first.choices[0].prefill_seconds, first.choices[0].decode_seconds) == (
        0,
        1,
        3,
    )
    assert (second.choices[0].queue_seconds, second.choices[0].prefill_seconds) == (4, 1)
    assert second.total_seconds == 7
    assert second.deadline_seconds == 60.0
    assert [choice.completion_tokens for choice in first.choices + second.choices] == [4, 3]
    assert engine.explain("third") is None


def test_rungs_are_named_mildest_first() -> None:
    bits = 1 << Rung.PREEMPT | 1 << Rung.DROP_PREFIX | 1 << Rung.NONE
    assert rung_labels(bits) == ("drop_prefix", "preempt")
    assert rung_labels(0) == ()


def test_the_text_says_what_the_record_holds() -> None:
    plain = explain_text(record_of("r1"))
    assert plain.splitlines() == [
        "r1: 3 prompt tokens (1 cached), 1.750 s",
        "  choice 0: 7 tokens, stop; queue 0.500 s, prefill 0.250 s, decode 1.000 s",
        "  rungs: none: memory was never tight for it",
    ]
    record = record_of("r2", error="no answer")
    choice = msgspec.structs.replace(record.choices[0], num_preemptions=2, preempted_seconds=0.125, finish_reason=None)
    record = msgspec.structs.replace(record, rungs=("preempt",), deadline_seconds=2.5, choices=(choice,))
    text = explain_text(record)
    for part in (
        "of 2.5 s allowed",
        "still running",
        "preempted 0.125 s",
        "preempted 2 times",
        "rungs: preempt",
        "error: no answer",
    ):
        assert part in text, text


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 99), st.booleans()), min_size=6, max_size=60),
    st.integers(900, 2500),
)
def test_the_history_keeps_the_last_used_within_its_bytes(actions: list[tuple[int, int, bool]], max_bytes: int) -> None:
    """Against a list of (name, record), the last used at the end, whose sizes are counted anew each time."""
    history, kept = RequestHistory(max_bytes), []

    def size(record: RequestRecord) -> int:
        return len(msgspec.msgpack.encode(record)) + len(record.request_id) + ENTRY_BYTES

    for number, length, looks in actions:
        name = f"q{number}"
        if looks:
            mine = [one for one in kept if one.request_id == name]
            assert history.find(name) == (mine[0] if mine else None)
            kept = [one for one in kept if one.request_id != name] + mine
        else:
            record = record_of(name, error="x" * length)
            history.add(record)
            kept = [one for one in kept if one.request_id != name] + [record]
            while sum(map(size, kept)) > max_bytes:
                del kept[0]
        assert history.num_bytes == sum(map(size, kept)) <= max_bytes


def test_a_record_that_is_too_large_is_not_kept() -> None:
    history = RequestHistory(2000)
    history.add(record_of("small"))
    history.add(record_of("large", error="x" * 4000))
    assert history.find("large") is None
    assert history.num_bytes == 0 or history.find("small") is not None


@pytest.mark.parametrize("num_choices", [1, 3])
def test_each_choice_has_a_line(num_choices: int) -> None:
    assert explain_text(record_of("r", num_choices=num_choices)).count("  choice ") == num_choices
