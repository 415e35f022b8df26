"""/admin/memory behind its own key, deadlines, and where the time of a request went."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from openautoglm.engine.record import ChoiceRecord, RequestRecord
from openautoglm.serve.access import AccessOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, events_of, live_server

ADMIN = {"Authorization": "Bearer adm"}


@pytest.fixture(scope="module")
def keyed(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, access=AccessOptions(api_key="api", admin_key="adm")) as live:
        yield live


def record(name: str) -> RequestRecord:
    choice = ChoiceRecord(
        choice=0, finish_reason="stop", completion_tokens=4, queue_seconds=0.5, prefill_seconds=0.25,
        decode_seconds=1.0, preempted_seconds=2.0, spilled_seconds=0.0, num_preemptions=1, num_spills=0,
    )  # fmt: skip
    return RequestRecord(
        request_id=name, prompt_tokens=7, cached_tokens=3, total_seconds=3.75, rungs=("preempt",), choices=(choice,)
    )


def test_without_an_admin_key_the_path_is_refused(server: Live) -> None:
    for path in ("/admin/memory", "/admin", "/admin/anything"):
        answer = server.get(path, headers=ADMIN)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "no_admin_key"
    assert server.post("/admin/memory", {"memory": "3GiB"}).status_code == 403
    assert server.engine.budgets == []


def test_only_the_admin_key_opens_it(keyed: Live) -> None:
    for headers, status, code in (
        ({}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer api"}, 403, "missing_role"),
        ({"Authorization": "Basic adm"}, 401, "invalid_api_key"),
    ):
        answer = keyed.get("/admin/memory", headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
    shown = keyed.get("/admin/memory", headers=ADMIN)
    assert shown.status_code == 200
    assert shown.json()["ledger"] == {"weights": 3}
    assert shown.json()["transitions"] == {"spill": 2}
    # And it opens nothing else.
    assert keyed.get("/v1/models", headers=ADMIN).status_code == 403


@pytest.mark.parametrize(
    ("memory", "num_bytes"), [("3GiB", 3 << 30), ("1.5 GB", 1_500_000_000), (123456789, 123456789)]
)
def test_a_budget_reaches_the_engine(keyed: Live, memory: object, num_bytes: int) -> None:
    keyed.engine.budgets.clear()
    answer = keyed.post("/admin/memory", {"memory": memory}, headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["budget_bytes"] == num_bytes
    assert keyed.engine.budgets == [num_bytes]


@pytest.mark.parametrize(
    "memory", ["lots", -1, 0, 2.5, True, None, 10**18 * 2, "1e99GiB", "9" * 400 + "GiB", pytest.param(..., id="absent")]
)
def test_a_budget_that_is_none_is_refused(keyed: Live, memory: object) -> None:
    body = {} if memory is ... else {"memory": memory}
    keyed.engine.budgets.clear()
    answer = keyed.post("/admin/memory", body, headers=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "memory"
    assert keyed.engine.budgets == []


def test_a_report_of_memory_needs_the_admin_key(server: Live, keyed: Live) -> None:
    keyed.engine.traces.clear()
    assert server.post("/admin/memory/report", {}, headers=ADMIN).status_code == 403
    assert keyed.post("/admin/memory/report", {}, headers={"Authorization": "Bearer api"}).status_code == 403
    assert keyed.engine.traces == []
    answer = keyed.post("/admin/memory/report", {}, headers=ADMIN)
    assert answer.status_code == 200
    (report,) = answer.json()["reports"]
    assert (report["process"], report["measured"], report["file"]) == ("engine", {"weights": 3}, None)
    assert keyed.post("/admin/memory/report", {"trace": False}, headers=ADMIN).status_code == 200
    assert keyed.engine.traces == [None, False]
    assert keyed.get("/admin/memory/report", headers=ADMIN).status_code == 405


@pytest.mark.parametrize("body", [{"trace": "yes"}, {"trace": 1}, [], {"trace": True}])
def test_a_report_that_cannot_be_is_refused(keyed: Live, body: object) -> None:
    """The last one is refused by an engine whose budget has no room for tracing."""
    answer = keyed.post("/admin/memory/report", body, headers=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("fields", "expected"), [({"deadline_seconds": 2}, 2.0), ({"timeout": 1.5}, 1.5), ({}, None),
                                                  ({"timeout": 3.0, "deadline_seconds": 3}, 3.0)])  # fmt: skip
def test_deadlines_reach_the_engine(server: Live, fields: dict[str, object], expected: float | None) -> None:
    assert server.chat(**fields).status_code == 200
    given = server.engine.requests[-1].deadline_seconds
    # What the request has waited here is not left any more.
    assert given is None if expected is None else given is not None and expected - 1 < given < expected


@pytest.mark.parametrize("fields", [{"deadline_seconds": 0}, {"timeout": -1}, {"deadline_seconds": "soon"},
                                    {"deadline_seconds": 1e9}, {"deadline_seconds": 2, "timeout": 3}])  # fmt: skip
def test_deadlines_that_cannot_be_are_refused(server: Live, fields: dict[str, object]) -> None:
    answer = server.chat(**fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("deadline_seconds", "timeout")
    assert server.engine.requests == []


def test_a_missed_deadline_has_its_own_error(server: Live) -> None:
    server.engine.late_after_tokens = 2
    answer = server.chat()
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("timeout_error", "deadline_missed", "deadline_seconds")
    stream = events_of(server.chat(stream=True).text)
    assert json.loads(stream[-1])["error"]["code"] == "deadline_missed"


def test_a_touched_request_tells_its_record(server: Live) -> None:
    server.engine.records["0"] = record("0")
    whole = server.chat().json()
    assert whole["openautoglm"]["requests"][0]["rungs"] == ["preempt"]
    assert whole["openautoglm"]["requests"][0]["choices"][0]["preempted_seconds"] == 2.0
    chunks = [json.loads(event) for event in events_of(server.chat(stream=True).text) if event != "[DONE]"]
    told = [chunk for chunk in chunks if "openautoglm" in chunk]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == ["stop"]


def test_explain_finds_one_request_or_all_prompts_of_an_answer(server: Live) -> None:
    server.engine.records.update({f"cmpl-1-{index}": record(f"cmpl-1-{index}") for index in range(3)})
    for name, count in (("cmpl-1", 3), ("cmpl-1-2", 1)):
        answer = server.get(f"/v1/requests/{name}/explain").json()
        assert answer["id"] == name
        assert len(answer["requests"]) == count
        assert "prompt" not in answer["requests"][0]


@pytest.mark.parametrize("name", ["unknown", "a" * 200, "%2e%2e", "x%00y"])
def test_explain_of_an_unknown_request_is_a_404(server: Live, name: str) -> None:
    answer = server.get(f"/v1/requests/{name}/explain")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "request_not_found"
