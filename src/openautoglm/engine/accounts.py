"""What the processes of a server know of their own memory: the accounts that their watchdogs read."""

from __future__ import annotations

from openautoglm.engine.engine import Engine
from openautoglm.engine.watchdog import Accounts
from openautoglm.executor.native import NativeExecutor
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.requests import TEMPLATE_BYTES, request_space
from openautoglm.memory.tiers import HOST_TIER_NAME
from openautoglm.probe.process_memory import private_resident_bytes
from openautoglm.spec.plan import Component, Plan

_HTTP_PART, _TEMPLATE_PART = "HTTP process", "chat templates"


def http_ledger_bytes(plan: Plan) -> int:
    """Return what a server's plan grants its HTTP process: the process itself, and its shares of the headroom."""
    space = request_space(plan.breakdown.headroom_bytes)
    return _runtime_bytes(plan, _HTTP_PART) + space.body_bytes + space.answer_bytes + space.event_bytes


def engine_accounts(engine: Engine, executor: NativeExecutor, ledger: Ledger, plan: Plan, *, server: bool) -> Accounts:
    """Return the accounts of the process of an engine, as they are now; in a server, without the others' share.

    For the engine's own thread, between two steps: a pool that is being resized has no size to be told.
    """
    others = _runtime_bytes(plan, _TEMPLATE_PART) + TEMPLATE_BYTES + http_ledger_bytes(plan) if server else 0
    return Accounts(
        private_bytes=private_resident_bytes(),
        measured=executor.resident_parts() | _spilled(engine),
        charged={
            "requests": engine.charged_bytes,
            "request history": engine.history.num_bytes,
            "block index": engine.pool.index_bytes,
            "grammars": engine.grammars.charged_bytes,
        },
        ledger_bytes=ledger.in_use_bytes - others,
    )


def _spilled(engine: Engine) -> dict[str, int]:
    """Return what spilled blocks take in memory; nothing where there is no such tier."""
    return {} if engine.spill is None else {HOST_TIER_NAME: engine.spill.store.host_bytes}


def _runtime_bytes(plan: Plan, name: str) -> int:
    return sum(part.num_bytes for part in plan.breakdown.parts_of(Component.RUNTIME) if part.name == name)
