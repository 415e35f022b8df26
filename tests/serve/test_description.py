"""The server against its own OpenAPI: whatever fits the description, or just does not, is answered as it says.

schemathesis makes the requests; the routes are whatever the running server describes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from openautoglm.serve.access import AccessOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

KEY = "oag-described"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Operation -> a field that says how long it takes, and what is enough here.
DURATIONS = {"POST /admin/profile": ("seconds", 0.1)}
# Of one request, beside what it may generate: an answer that takes longer hangs.
ANSWER_SECONDS = 20


@pytest.fixture(scope="module")
def described(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, access=AccessOptions(api_key=KEY, admin_key=KEY, metrics_key=KEY)) as server:
        yield server


def description(server: Live) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/openapi.json", headers=AUTHORIZATION).json()
    return found


def failures(server: Live, num_examples: int, path: str = "") -> dict[str, str]:
    """Send so many requests to each operation, half of them broken on purpose; return what was wrong, by operation.

    With `path` only to operations whose name has it.
    """
    schema = schemathesis.openapi.from_dict(description(server))
    wrong = {}
    with requests.Session() as session:
        session.headers.update(AUTHORIZATION)
        for found in schema.get_all_operations():
            operation = found.ok()
            if path not in operation.label:
                continue
            for mode in GenerationMode:
                try:
                    run(server, session, operation, mode, num_examples // 2)
                except Unsatisfiable:
                    # Without a body, parameters and keys there is nothing to break.
                    if mode is GenerationMode.POSITIVE:
                        raise
                except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  the other operations are tried too
                    wrong[f"{operation.label}, {mode.value}"] = told(error)[:2000]
    return wrong


def listed(wrong: dict[str, str]) -> str:
    return "\n\n".join(f"{operation}:\n{what}" for operation, what in wrong.items())


def told(error: BaseException) -> str:
    """Return what an error says; schemathesis raises groups of what it found in one answer."""
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(told(one) for one in error.exceptions)
    return f"{error}: {getattr(error, 'message', '')}"


def missed_deadline(body: Any, response: Any) -> bool:
    """Whether an answer is the one that a deadline of less than a second may have."""
    deadlines = [body.get(name) for name in ("deadline_seconds", "timeout")] if isinstance(body, dict) else []
    asked = any(isinstance(one, float | int) and 0 < one < 1 for one in deadlines)
    return bool(asked and response.status_code == 504 and response.json()["error"]["code"] == "deadline_missed")


def run(server: Live, session: requests.Session, operation: Any, mode: GenerationMode, num_examples: int) -> None:
    @seed(20261125)
    @settings(
        max_examples=num_examples,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: schemathesis.Case) -> None:
        if operation.label in DURATIONS and isinstance(case.body, dict):
            name, enough = DURATIONS[operation.label]
            if isinstance(case.body.get(name, 0.0), int | float):
                case.body[name] = enough
        response = case.call(base_url=server.url, session=session, timeout=ANSWER_SECONDS)
        expected = missed_deadline(case.body, response)
        case.validate_response(response, checks=[one for one in CHECKS if not (expected and one is not_a_server_error)])

    each()


def test_every_operation_answers_as_described(described: Live) -> None:
    wrong = failures(described, 50)
    assert not wrong, listed(wrong)
    described.http.headers.update(AUTHORIZATION)
    described.still_answers()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_operation_answers_as_described_a_thousand_times(described: Live) -> None:
    wrong = failures(described, 1000)
    assert not wrong, listed(wrong)


def test_what_is_described_is_complete(described: Live) -> None:
    paths = description(described)["paths"]
    for path, item in paths.items():
        for method, operation in item.items():
            responses = operation["responses"]
            where = f"{method} {path}"
            assert "422" not in responses, where
            assert all(answer["content"] for answer in responses.values()), where
            assert "500" in responses, where
            assert ({"401", "403"} <= set(responses)) == ("security" in operation) == (path != "/health"), where
            if "requestBody" in operation:
                assert {"400", "408", "413", "415"} <= set(responses), where
                assert operation["requestBody"]["content"].keys() == {"application/json"}, where
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = paths[path]["post"]["responses"]
        assert set(answer["200"]["content"]) == {"application/json", "text/event-stream"}
        assert {"429", "503", "504", "404"} <= set(answer)
        assert answer["200"]["content"]["text/event-stream"]["schema"]["required"] == ["data"]
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


def test_what_does_not_fit_the_description_is_found(described: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    assert failures(described, 2, "GET /admin/memory") == {}
    monkeypatch.setattr(described.engine, "memory", broken)
    assert "Server error" in failures(described, 2, "GET /admin/memory")["GET /admin/memory, positive"]

    async def otherwise() -> dict[str, object]:
        return {"budget_bytes": "many", "tree_bytes": 1, "rung": "none", "ledger": {}}

    monkeypatch.setattr(described.engine, "memory", otherwise)
    assert "schema" in failures(described, 2, "GET /admin/memory")["GET /admin/memory, positive"]
