"""The server's own OpenAPI description: bodies are read by hand, so their schemas are added by hand.

What holds for all routes is added to all: who may use them, the errors that they answer with, and that an answer to
`"stream": true` is a stream of events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from openautoglm.serve.access import OPEN_PATHS, role_of
from openautoglm.serve.answer_schemas import (
    ChatAnswer,
    CompletionAnswer,
    DetokenizeAnswer,
    ErrorAnswer,
    ExplainAnswer,
    HealthAnswer,
    MemoryAnswer,
    MemoryReportsAnswer,
    ModelAnswer,
    ModelsAnswer,
    SplitAnswer,
    TokenizeAnswer,
)
from openautoglm.serve.keys import Role

_REFERENCE = "#/components/schemas/{model}"
_BEARER = "bearer"
_METHODS = ("get", "post", "put", "patch", "delete")
# Routes whose answers are described; the rest answer with some JSON.
_ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatAnswer,
    "/v1/completions": CompletionAnswer,
    "/v1/models": ModelsAnswer,
    "/v1/models/{model}": ModelAnswer,
    "/tokenize": TokenizeAnswer,
    "/detokenize": DetokenizeAnswer,
    "/v1/split": SplitAnswer,
    "/health": HealthAnswer,
    "/admin/memory": MemoryAnswer,
    "/admin/memory/report": MemoryReportsAnswer,
    "/v1/requests/{request_id}/explain": ExplainAnswer,
}
# One event of a stream: before OpenAPI 3.2 the schema of `text/event-stream` describes each event, not all of them.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
# Status -> why, by what a route has.
_ALWAYS = {500: "A fault of the server: its log has it under the request's id"}
_GUARDED = {401: "The key is missing or wrong", 403: "The key is not allowed to do this"}
_ENGINE = {503: "The engine is not available, memory is too tight, or the server is stopping: see Retry-After"}
_USER = {429: "There is no room for the request now, or the key's limits are reached: see Retry-After"}
_BODY = {
    400: "The request is at fault; `param` names the field",
    404: "The model is not served here",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not plain JSON",
    504: "The request's own deadline cannot be met, or has passed",
}
_PATH = {404: "There is no such thing"}


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what a route adds to its description: the type of its body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _reference(kind.__name__)}}}}


def add_schemas(app: FastAPI, kinds: tuple[type[BaseModel], ...]) -> None:
    """Let the application describe itself with the schemas of `kinds`."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            every: tuple[type[BaseModel], ...] = (*kinds, ErrorAnswer, *_ANSWERS.values())
            for kind in every:
                schema = kind.model_json_schema(ref_template=_REFERENCE)
                schemas.update(schema.pop("$defs", {}))
                schemas[kind.__name__] = schema
            described["components"]["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
            for path, operation in _operations(described):
                _complete(path, operation, schemas)
            # FastAPI's own errors are answered like all others here.
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, item[method]


def _complete(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Add to one operation what holds for it because of its path, its body and its parameters."""
    responses = operation["responses"]
    responses.pop("422", None)
    body = _body_schema(operation, schemas)
    for status, answer in responses.items():
        if status.startswith("2"):
            answer["content"] = _content(path, body, answer)
    errors = dict(_ALWAYS)
    if path not in OPEN_PATHS:
        operation["security"] = [{_BEARER: []}]
        errors |= _GUARDED
        if role_of(path) in (Role.USER, Role.ADMIN):
            errors |= _ENGINE
    if role_of(path) is Role.USER:
        errors |= _USER
    if body is not None:
        errors |= _BODY
    if "{" in path:
        errors |= _PATH
    if operation.get("parameters"):
        errors |= {400: _BODY[400]}
    for status, why in errors.items():
        responses.setdefault(str(status), {"description": why, "content": _json(_reference(ErrorAnswer.__name__))})
    if path in OPEN_PATHS:
        responses["503"] = {"description": "Not ready", "content": responses["200"]["content"]}


def _content(path: str, body: dict[str, Any] | None, response: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer consists of."""
    if path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = dict(response.get("content", {}))
    if path in _ANSWERS:
        content |= _json(_reference(_ANSWERS[path].__name__))
    if body is not None and "stream" in body.get("properties", {}):
        content["text/event-stream"] = {"schema": _EVENT}
    return content


def _body_schema(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of an operation's body, None for one without."""
    if "requestBody" not in operation:
        return None
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    return found


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=name)}
