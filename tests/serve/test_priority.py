"""Queues at the edge: what requests ask for, and what their keys may."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.access import AccessOptions, Caller
from openautoglm.serve.keys import KeyRecord, Role, change_keys, read_keys
from openautoglm.serve.priority import granted_priority, wanted_priority
from openautoglm.serve.replies import ReplyError
from openautoglm.spec.scheduling import Queue
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

QUEUES = ("high", "normal", "batch")


@pytest.fixture(scope="module")
def keyed(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with a key for each queue, called like it."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    change_keys(
        file,
        lambda _: tuple(
            KeyRecord(
                name=name, roles=(Role.USER,), sha256=hashlib.sha256(name.encode()).hexdigest(), created=0, queue=name
            )
            for name in QUEUES
        ),
    )
    assert [key.queue for key in read_keys(file)] == list(QUEUES)
    with live_server(tokenizer, access=AccessOptions(keys_file=file)) as server:
        yield server


@pytest.mark.parametrize(
    ("priority", "tier", "wanted"),
    [
        (None, None, None), (None, "auto", None), (None, "default", 0), (None, "flex", 1), (None, "priority", -1),
        (-7, "priority", -7), (5, "auto", 5), (0, "default", 0), (3, None, 3),
    ],
)  # fmt: skip
def test_tiers_and_numbers(priority: int | None, tier: str | None, wanted: int | None) -> None:
    assert wanted_priority(priority, tier) == wanted


@pytest.mark.parametrize(("priority", "tier"), [(1, "priority"), (0, "flex"), (-1, "default"), (None, "scale")])
def test_tiers_that_cannot_be_are_refused(priority: int | None, tier: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        wanted_priority(priority, tier)
    assert caught.value.param == "service_tier"


@pytest.mark.parametrize("queue", Queue)
@pytest.mark.parametrize("wanted", [None, -5, 0, 5])
def test_a_key_gets_its_queue_and_what_is_below(queue: Queue, wanted: int | None) -> None:
    caller = Caller(name="x", roles=frozenset({Role.USER}), queue=queue)
    rank = {-5: 0, 0: 1, 5: 2}
    if wanted is None:
        assert granted_priority(None, caller) == {Queue.HIGH: 0, Queue.NORMAL: 0, Queue.BATCH: 1}[queue]
    elif rank[wanted] >= queue.value:
        assert granted_priority(wanted, caller) == wanted
    else:
        with pytest.raises(ReplyError) as caught:
            granted_priority(wanted, caller)
        assert (caught.value.reply.status, caught.value.reply.code) == (403, "queue_not_allowed")


def test_what_reaches_the_engine_and_what_is_refused(keyed: Live) -> None:
    def ask(key: str, **fields: object) -> int:
        return keyed.post(
            "/v1/completions", {"prompt": "x", **fields}, headers={"Authorization": f"Bearer {key}"}
        ).status_code

    assert ask("high", service_tier="priority") == 200
    assert keyed.engine.requests[-1].priority == -1
    assert ask("batch") == 200
    assert keyed.engine.requests[-1].priority == 1
    assert ask("normal") == 200
    assert keyed.engine.requests[-1].priority == 0
    num_taken = len(keyed.engine.requests)
    assert (ask("normal", priority=-1), ask("batch", service_tier="default"), ask("normal", service_tier="x")) == (
        403, 403, 400,
    )  # fmt: skip
    assert len(keyed.engine.requests) == num_taken
    # Whoever needs no key may ask for everything.


def test_without_keys_everybody_may_ask_for_all(server: Live) -> None:
    assert server.chat("x", service_tier="priority").status_code == 200
    assert server.engine.requests[-1].priority == -1
