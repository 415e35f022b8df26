"""What clients write of what an answer must look like, in OpenAI's field or in vLLM's, as one `Constraint`.

OpenAI: `response_format`. vLLM: `structured_outputs` with one of json, regex, choice, grammar, json_object; and its
former names `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.schemas import SamplingBody
from openautoglm.spec.constraint import Constraint, ConstraintKind

_FORMAT, _OUTPUTS = "response_format", "structured_outputs"
_FORMATS = '"text", "json_object" and "json_schema"'


def constraint_of(body: SamplingBody) -> Constraint | None:
    """Return the constraint of a request, None for none; raise `InvalidRequestError` naming what cannot be honoured."""
    guided = {f"guided_{name}": getattr(body, f"guided_{name}") for name in _MAKERS}
    found = [
        _from_format(body.response_format),
        _from_outputs(body.structured_outputs),
        *(_MAKERS[name.removeprefix("guided_")](value, name) for name, value in guided.items() if value is not None),
    ]
    constraints = [constraint for constraint in found if constraint is not None]
    if len(constraints) > 1:
        first, second = constraints[0].param, constraints[1].param
        raise InvalidRequestError(f"{first} and {second} both say what the answer is to be: send one", param=second)
    return constraints[0] if constraints else None


def _from_format(value: dict[str, Any] | None) -> Constraint | None:
    if value is None:
        return None
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequestError(f"response_format.type must be one of {_FORMATS}", param=_FORMAT)
    _refuse_others(value, {"type", "json_schema"} if kind == "json_schema" else {"type"}, _FORMAT)
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json_object(param=_FORMAT)
    wanted = value.get("json_schema")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
        raise InvalidRequestError(
            'response_format of type "json_schema" needs json_schema: {"name": …, "schema": {…}}', param=_FORMAT
        )
    # Every schema is followed strictly, whether that was asked for or not.
    _refuse_others(wanted, {"name", "description", "schema", "strict"}, f"{_FORMAT}.json_schema")
    return _schema(wanted["schema"], _FORMAT)


def _from_outputs(value: dict[str, Any] | None) -> Constraint | None:
    if value is None:
        return None
    given = {name: item for name, item in value.items() if item is not None}
    _refuse_others(given, {*_MAKERS, "json_object"}, _OUTPUTS)
    if len(given) > 1:
        raise InvalidRequestError(f"{_OUTPUTS} takes one constraint, got {' and '.join(sorted(given))}", param=_OUTPUTS)
    for name, item in given.items():
        if name == "json_object":
            if item is not True:
                raise InvalidRequestError(f"{_OUTPUTS}.json_object must be true, or left out", param=_OUTPUTS)
            return Constraint.json_object(param=_OUTPUTS)
        return _MAKERS[name](item, _OUTPUTS)
    return None


def _schema(value: object, param: str) -> Constraint:
    if isinstance(value, str):
        return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=value, param=param)
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{param} must be a JSON schema, an object or its text", param=param)
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(value, ensure_ascii=False), param=param)


def _choice(value: object, param: str) -> Constraint:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{param} must be a list of texts", param=param)
    return Constraint.one_of(value, param=param)


def _text_of(kind: ConstraintKind) -> Callable[[object, str], Constraint]:
    def make(value: object, param: str) -> Constraint:
        if not isinstance(value, str):
            raise InvalidRequestError(f"{param} must be text, a {kind.value}", param=param)
        return Constraint(kind=kind, text=value, param=param)

    return make


_MAKERS: Mapping[str, Callable[[object, str], Constraint]] = {
    "json": _schema,
    "choice": _choice,
    "regex": _text_of(ConstraintKind.REGEX),
    "grammar": _text_of(ConstraintKind.GRAMMAR),
}


def _refuse_others(value: Mapping[str, Any], known: set[str], param: str) -> None:
    others = [name for name, item in value.items() if name not in known and item is not None]
    if others:
        field = param.partition(".")[0]
        raise InvalidRequestError(f"{param}.{others[0][:40]} cannot be honoured: leave it out", param=field)
