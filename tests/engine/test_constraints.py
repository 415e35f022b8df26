"""Constraints on the embedded model: what comes out matches, draws follow the masked distribution, and a grammar that
takes too much ends its own request only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from openautoglm.engine.assemble import OpenedEngine
from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.engine.failures import event_error
from openautoglm.engine.grammars import CheckedCache
from openautoglm.errors import ConstraintError, ConstraintLimitError, InvalidRequestError, OverloadedError
from openautoglm.spec.constraint import Constraint, ConstraintKind
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.grammar import CheckedGrammar
from tests.engine.test_real_model import opened

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
        "at": {"anyOf": [{"type": "null"}, {"type": "number"}]},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {
        "type": "object",
        "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["v", "next"], "additionalProperties": False,
    }},
    "$ref": "#/$defs/node",
}  # fmt: skip
HOSTILE = {
    "patterns that multiply": json.dumps({"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(30)]}),
    "thousands of properties": json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(5000)}}),
    "a large multiple": '{"type": "integer", "multipleOf": 1000003}',
    "a loop": '{"$ref": "#"}',
    "a remote schema": '{"$ref": "http://127.0.0.1:9/x"}',
    "deep": '{"type":"array","items":' * 5000 + "{}" + "}" * 5000,
}

# A second of processor time each.
LONG = ("thousands of properties", "a large multiple")


def schema(value: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=value if isinstance(value, str) else json.dumps(value))


def regex(pattern: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=pattern)


# One state more for nearly every character that is written.
GROWS = regex("([a-z ]*)a[a-z ]{60}b[a-z ]{60}")


@pytest.fixture(scope="module")
def engine() -> Iterator[OpenedEngine]:
    with opened(NumberFormat.BF16) as result:
        yield result


def request(engine: OpenedEngine, name: str, sampling: SamplingParams, text: str = "x = ") -> GenerationRequest:
    return GenerationRequest(request_id=name, prompt_tokens=tuple(engine.tokenizer.encode(text)), sampling=sampling)


def run(engine: OpenedEngine, *requests: GenerationRequest) -> dict[tuple[str, int], list[GenerationEvent]]:
    """Run to the end; return the events of every choice."""
    for one in requests:
        engine.engine.add(one)
    events: dict[tuple[str, int], list[GenerationEvent]] = {}
    while engine.engine.has_work:
        for event in engine.engine.step():
            events.setdefault((event.request_id, event.choice), []).append(event)
    engine.engine.integrity_check()
    return events


def outcome(engine: OpenedEngine, sampling: SamplingParams) -> tuple[str, str]:
    """Return the text and how it ended; raise what its client would be told."""
    (events,) = run(engine, request(engine, "one", sampling)).values()
    if events[-1].finish_reason == "error":
        raise event_error(events[-1])
    return "".join(event.text for event in events), events[-1].finish_reason or ""


VARIETY = {
    "plain": SamplingParams(),
    "filtered": SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01),
    "penalised": SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.5, logprobs=2),
    "greedy": SamplingParams(temperature=0.0, logit_bias=((40, 5.0),)),
}


@pytest.mark.parametrize("name", VARIETY)
def test_random_answers_satisfy_their_schema_by_another_validator(engine, name):
    base = replace(VARIETY[name], max_tokens=250, seed=5, n=3, min_tokens=2)
    found = run(
        engine,
        request(engine, "person", replace(base, constraint=schema(PERSON))),
        request(engine, "tree", replace(base, constraint=schema(TREE))),
        request(engine, "free", replace(base, max_tokens=20)),
        request(engine, "date", replace(base, constraint=regex(r"\d{4}-(0[1-9]|1[0-2])"))),
    )
    assert len(found) == 12
    whole = 0
    for (request_id, _), events in found.items():
        text = "".join(event.text for event in events)
        if request_id == "free" or events[-1].finish_reason == "length":
            continue
        assert events[-1].finish_reason == "stop", events[-1]
        whole += 1
        if request_id == "date":
            assert re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text)
        else:
            jsonschema.validate(json.loads(text), {"person": PERSON, "tree": TREE}[request_id])
    assert whole >= 3


def test_draws_follow_the_softmax_of_the_allowed_logits(engine):
    sampling = SamplingParams(max_tokens=1, n=16, logprobs=0, constraint=regex("[a-e][0-9]"))
    drawn: Counter[int] = Counter()
    raw: dict[int, float] = {}
    for round_of in range(4):
        requests = [request(engine, f"r{seed}", replace(sampling, seed=10 * round_of + seed)) for seed in range(10)]
        for (event,) in run(engine, *requests).values():
            drawn[event.tokens[0]] += 1
            raw[event.tokens[0]] = event.logprobs[0].logprob
    # The logprobs are the model's own, before the mask.
    assert sum(np.exp(list(raw.values()))) < 0.9
    weights = np.exp(np.array([raw[token] for token in drawn], dtype=np.float64))
    expected = weights / weights.sum() * drawn.total()
    spread = np.sqrt(expected * (1 - expected / drawn.total()))
    assert np.all(np.abs(np.array(list(drawn.values())) - expected) < 5 * spread + 1), (drawn, expected)
    assert {engine.tokenizer.token_text(token)[0] for token in drawn} <= set("abcde")


def test_equal_seeds_give_equal_answers_alone_and_in_company(engine):
    sampling = SamplingParams(max_tokens=80, seed=3, n=2, constraint=schema(PERSON))
    alone = run(engine, request(engine, "a", sampling))
    others = [request(engine, f"o{i}", replace(sampling, seed=i, constraint=GROWS)) for i in range(3)]
    crowd = run(engine, *others, request(engine, "a", sampling), request(engine, "f", SamplingParams(max_tokens=40)))
    for choice in range(2):
        assert [e.tokens for e in crowd["a", choice]] == [e.tokens for e in alone["a", choice]]


def test_the_text_ends_with_its_match_whatever_else_is_asked(engine):
    one = Constraint.one_of(["yes"])
    assert outcome(engine, SamplingParams(constraint=one, min_tokens=9, max_tokens=20)) == ("yes", "stop")
    assert outcome(engine, SamplingParams(constraint=one, ignore_eos=True, max_tokens=20)) == ("yes", "stop")
    assert (
        outcome(engine, SamplingParams(constraint=regex("y{1,3}"), ignore_eos=True, max_tokens=20, seed=1))[1] == "stop"
    )
    assert outcome(engine, SamplingParams(constraint=regex("[a-z]{50}"), max_tokens=3))[1] == "length"
    assert outcome(engine, SamplingParams(constraint=one, stop=("es",)))[0] == "y"
    assert outcome(engine, SamplingParams(constraint=Constraint.one_of(['é"\n']), max_tokens=20)) == ('é"\n', "stop")


def test_settings_that_leave_no_token_end_the_request_by_name(engine):
    token = engine.tokenizer.encode("y")[0]
    sampling = SamplingParams(constraint=regex("y"), min_tokens=5, stop_token_ids=(token,), max_tokens=9)
    with pytest.raises(ConstraintError, match="no token is allowed by constraint and the other settings"):
        outcome(engine, sampling)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in HOSTILE]
)
def test_hostile_schemas_fail_alone_beside_a_stream_that_stays_the_same(engine, name):
    canary = SamplingParams(max_tokens=64, seed=9, ignore_eos=True, logprobs=1)
    alone = run(engine, request(engine, "canary", canary))["canary", 0]
    hostile = request(engine, "hostile", SamplingParams(max_tokens=8, constraint=schema(HOSTILE[name])))
    found = run(engine, hostile, request(engine, "canary", canary))
    error = event_error(found["hostile", 0][-1])
    assert isinstance(error, ConstraintError)
    assert error.param == "constraint"
    assert len(str(error)) < 500
    assert [(e.tokens, e.logprobs, e.text) for e in found["canary", 0]] == [
        (e.tokens, e.logprobs, e.text) for e in alone
    ]
    assert set(engine.ledger.usage()) & {"grammars", "grammar checks"} == set()


def test_a_grammar_that_grows_past_its_states_ends_its_own_request_only(engine):
    most = SamplingParams(max_tokens=400, seed=2, constraint=GROWS, temperature=3.0, n=2)
    found = run(engine, request(engine, "grows", most), request(engine, "small", replace(most, n=1, max_tokens=3)))
    error = event_error(found["grows", 0][-1])
    assert isinstance(error, ConstraintLimitError)
    assert "too many states" in str(error)
    assert found["small", 0][-1].finish_reason == "length"


def test_requests_may_be_cancelled_at_each_stage(engine):
    sampling = SamplingParams(max_tokens=100, constraint=schema(PERSON), n=2)
    inner = engine.engine
    inner.add(request(engine, "waiting", sampling))
    inner.abort("waiting")
    assert {event.finish_reason for event in inner.step()} == {"abort"}
    for num_steps in (1, 2, 5):
        inner.add(request(engine, "running", sampling))
        grammars = inner.grammars
        while grammars.num_open:
            inner.step()
        for _ in range(num_steps):
            inner.step()
        assert grammars.num_live == 1
        inner.abort("running")
        while inner.has_work:
            inner.step()
        assert grammars.num_live == 0
        inner.integrity_check()
    assert "grammars" not in engine.ledger.usage()
    assert outcome(engine, replace(sampling, n=1, constraint=Constraint.one_of(["ok"]))) == ("ok", "stop")


def test_compiling_is_told_apart_and_its_results_are_known_again(engine):
    inner = engine.engine
    before = inner.status().constraints
    assert before is not None
    sampling = SamplingParams(max_tokens=20, constraint=regex("[a-f]{7}"))
    run(engine, request(engine, "first", sampling), request(engine, "second", sampling))
    after = inner.status().constraints
    assert after is not None
    assert after.num_compiled == before.num_compiled + 2
    assert after.num_cached == before.num_cached + 1
    assert after.num_masks > before.num_masks
    assert after.mask_seconds > before.mask_seconds
    record = inner.explain("first")
    assert record is not None
    assert record.constraint_seconds > 0
    assert 0 < record.mask_seconds < record.choices[0].decode_seconds + record.choices[0].prefill_seconds


def test_grammars_are_charged_and_one_that_finds_no_room_is_told_to_come_back(engine):
    inner, ledger = engine.engine, engine.ledger
    sampling = SamplingParams(max_tokens=50, constraint=regex("[a-f]{40}"))
    run(engine, request(engine, "before", sampling))
    free = ledger.reserve("somebody else", ledger.free_bytes)
    try:
        with pytest.raises(OverloadedError, match="no memory for grammars"):
            outcome(engine, sampling)
    finally:
        free.release()
    inner.add(request(engine, "charged", sampling))
    while inner.grammars.num_open:
        inner.step()
    held = ledger.usage()["grammars"]
    assert held > 1 << 20
    assert inner.grammars.charged_bytes > held
    while inner.has_work:
        inner.step()
    assert "grammars" not in ledger.usage()


def test_too_many_that_wait_are_refused_at_once(engine):
    grammars = engine.engine.grammars
    grammars.max_waiting = 0
    try:
        with pytest.raises(OverloadedError, match="wait for their constraints"):
            engine.engine.add(request(engine, "x", SamplingParams(constraint=regex("a"))))
    finally:
        grammars.max_waiting = 64
    assert engine.engine.explain("x") is None


def test_an_engine_without_a_compiler_refuses_constraints_by_name():
    from tests.engine.history_executor import HistoryExecutor, make_engine

    with pytest.raises(InvalidRequestError, match="knows no constraints"):
        make_engine(HistoryExecutor(4)).add(
            GenerationRequest(request_id="x", prompt_tokens=(1,), sampling=SamplingParams(constraint=regex("a")))
        )


def test_ten_thousand_constraints_leave_the_cache_bounded():
    cache = CheckedCache(100_000)
    for number in range(10_000):
        key = number.to_bytes(32, "big")
        found = CheckedGrammar(source="x" * 500, param="p", limits={}, num_bytes=1)
        cache.keep(key, found if number % 2 else ConstraintError("y" * 300, param="p"))
        assert cache.num_bytes <= 100_000
        assert cache.find(key) is not None
    assert cache.find((0).to_bytes(32, "big")) is None
    assert 10 < sum(cache.find(n.to_bytes(32, "big")) is not None for n in range(10_000)) < 100
