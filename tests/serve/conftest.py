"""One tokenizer for all, one server for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def module_server(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer) as live:
        yield live


@pytest.fixture
def server(module_server: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The module's server, its engine as it was at first after each test."""
    engine = module_server.engine
    for name in (
        "seconds_per_token",
        "seconds_before_first",
        "fail_after_tokens",
        "refuse",
        "gone",
        "deaf",
        "hung",
        "late_after_tokens",
    ):
        monkeypatch.setattr(engine, name, getattr(engine, name))
    engine.requests.clear()
    engine.aborted.clear()
    engine.records.clear()
    engine.budgets.clear()
    engine.traces.clear()
    yield module_server
    monkeypatch.undo()
    module_server.wait_until_idle()
