"""Constraints: what is refused before anything is compiled, and how they cross the wire."""

from __future__ import annotations

import msgspec
import pytest

from openautoglm.engine.client import GenerationRequest
from openautoglm.errors import InvalidRequestError
from openautoglm.spec.constraint import MAX_CONSTRAINT_BYTES, MAX_CONSTRAINT_CHOICES, Constraint, ConstraintKind
from openautoglm.spec.sampling import SamplingParams


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has 0 bytes"),
        ("x" * (MAX_CONSTRAINT_BYTES + 1), f"1 to {MAX_CONSTRAINT_BYTES} are allowed"),
        ("é" * (MAX_CONSTRAINT_BYTES // 2 + 1), f"has {MAX_CONSTRAINT_BYTES + 2} bytes"),
        ("\ud800", "lone surrogate"),
        (7, "a ConstraintKind and a text"),
    ],
)
def test_text_that_can_be_no_constraint_is_refused_by_the_field_that_it_came_from(text, says):
    with pytest.raises(InvalidRequestError, match=says) as caught:
        Constraint(kind=ConstraintKind.REGEX, text=text, param="guided_regex")
    assert caught.value.param == "guided_regex"


@pytest.mark.parametrize("choices", [[], ["a"] * (MAX_CONSTRAINT_CHOICES + 1), ["a", ""], ["a", 1]])
def test_choices_must_be_a_bounded_list_of_texts(choices):
    with pytest.raises(InvalidRequestError, match="list of 1 to"):
        Constraint.one_of(choices)


def test_sampling_takes_constraints_only():
    with pytest.raises(InvalidRequestError, match="must be a Constraint, got dict"):
        SamplingParams(constraint={"kind": "regex", "text": "a"})  # type: ignore[arg-type]


def test_a_constraint_crosses_the_wire():
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type": "object"}', param="response_format")
    request = GenerationRequest(request_id="a", prompt_tokens=(1,), sampling=SamplingParams(constraint=constraint))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerationRequest) == request
