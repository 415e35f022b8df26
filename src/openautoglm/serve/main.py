"""`openautoglm serve`: the plan, the engine in its own process, HTTP in this one, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from openautoglm.engine.accounts import http_ledger_bytes
from openautoglm.engine.assemble import Prepared, default_sampling, prepare
from openautoglm.engine.client import EngineDescription
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.process import EngineProcess
from openautoglm.engine.remote import SocketEngineClient
from openautoglm.engine.report_files import ReportFiles, check_directory, report_directory
from openautoglm.engine.watchdog import Accounts, Watchdog
from openautoglm.families.generation import read_generation_defaults
from openautoglm.log import announce, rewrite_log_lines
from openautoglm.memory.allocator import bound_allocator, trim_allocator
from openautoglm.memory.requests import TEMPLATE_BYTES, request_space
from openautoglm.planner.explain import plan_table
from openautoglm.probe.process_memory import private_resident_bytes
from openautoglm.progress import ProgressCallback
from openautoglm.serve.access import Access, keep_current
from openautoglm.serve.audit import AuditLog, open_audit
from openautoglm.serve.context import ServeContext
from openautoglm.serve.doorman import Doorman
from openautoglm.serve.drain import Drain
from openautoglm.serve.intake import Intake
from openautoglm.serve.limits import Limits
from openautoglm.serve.listener import listen, open_listener, url_of
from openautoglm.serve.metrics import Metrics
from openautoglm.serve.options import ServeOptions
from openautoglm.serve.pinned import pin_prompts
from openautoglm.serve.privacy import Privacy
from openautoglm.serve.recording import TrafficRecorder
from openautoglm.serve.settings import EdgeSettings, check_bind
from openautoglm.serve.slow_start import SlowStart
from openautoglm.serve.supervise import keep_running
from openautoglm.serve.tools import check_tool_format
from openautoglm.serve.trace_options import TraceOptions
from openautoglm.serve.warmup import warm_up
from openautoglm.serve.web import Server, join_logs
from openautoglm.spec.plan import Plan
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.watchdog import WatchdogOptions
from openautoglm.text.template import ChatTemplate
from openautoglm.text.template_process import TemplateLimits
from openautoglm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from openautoglm.serve.tracing import Tracing

_TRIM_SECONDS = 2.0
# Messages are not the operator's: rendering them must stay within what the plan left for it.
_TEMPLATE_LIMITS = TemplateLimits(memory_bytes=TEMPLATE_BYTES)
# Requests that are being read or refused beside those that the engine has taken.
_SPARE_REQUESTS = 32
_TERMINATED_EXIT_CODE = 128 + signal.SIGTERM


def serve(
    options: ServeOptions,
    *,
    progress: ProgressCallback | None = None,
    on_loaded: Callable[[], None] | None = None,
) -> int:
    """Serve a model until SIGTERM or SIGINT; return the exit code (0 after an orderly end).

    The plan goes to stderr before anything is loaded, the receipt after; the address goes to stdout when the server
    is ready. `on_loaded` is called in between. Raises `ConfigError` for an address that cannot be served, and whatever
    planning and loading raise.
    """
    check_bind(options.host, guarded=options.access.guarded)
    access = Access(options.access)
    if options.tls is not None:
        options.tls.check()
    if options.traces is not None:
        options.traces.check()
    check_directory(options.engine.watchdog.directory)
    join_logs()
    bound_allocator()
    # Until the server runs, SIGTERM ends it like Ctrl-C does: nothing is left behind.
    before = signal.signal(signal.SIGTERM, _terminate)
    if options.access.keys_file is not None:
        # It asks to read the keys again, which the start does anyway, and would otherwise end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ExitStack() as stack:
            audit = stack.enter_context(open_audit(options.audit))
            listener = stack.enter_context(open_listener(options.host, options.port))
            listen(listener)
            doorman = stack.enter_context(Doorman(listener, options.tls))
            prepared = prepare(options.engine, to_run=True)
            if not options.reuse.pin_prompts:
                announce(plan_table(prepared.plan))
            tokenizer, template, sampling = _open_text(prepared, progress)
            stack.enter_context(template)
            check_tool_format(options.answers.tool_format, template)
            template.spawn()
            if options.reuse.pin_prompts:
                prepared = pin_prompts(prepared, options.reuse.pin_prompts, tokenizer, template)
                announce(plan_table(prepared.plan))
            process = stack.enter_context(EngineProcess(_as_planned(prepared)))
            description = process.start(progress=progress)
            template.start()
            if on_loaded is not None:
                on_loaded()
            # The plan has been told; the receipt is the last of the tables.
            announce("\n" + description.plan_table.rpartition("\n\n")[2])
            if options.receipt_file is not None:
                options.receipt_file.write_text(description.receipt_json + "\n", encoding="utf-8")
            doorman.close()
            return asyncio.run(
                _run(
                    options, access, audit, listener, process, tokenizer, template, sampling, description, prepared.plan
                )
            )
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_planned(prepared: Prepared) -> EngineOptions:
    """Return options that make the engine's process plan what was told here, whatever became free or full since."""
    options, plan = prepared.options, prepared.plan
    goal = replace(
        options.goal,
        memory_bytes=plan.budget_bytes,
        context_tokens=plan.context_tokens,
        concurrency=plan.concurrency,
        quant=plan.formats.layers.number,
        kv=plan.formats.kv,
        num_threads=plan.num_threads,
    )
    return replace(options, goal=goal)


def _open_text(prepared: Prepared, progress: ProgressCallback | None) -> tuple[Tokenizer, ChatTemplate, SamplingParams]:
    """Read what this process needs of the checkpoint; cheap, so that a bad tokenizer fails before the load."""
    directory = prepared.directory(progress=progress)
    tokenizer = Tokenizer.from_directory(directory)
    tokenizer.check_vocabulary(prepared.spec.vocab_size)
    sampling = default_sampling(read_generation_defaults(directory, prepared.config))
    return tokenizer, ChatTemplate.from_directory(directory, limits=_TEMPLATE_LIMITS), sampling


async def _run(
    options: ServeOptions,
    access: Access,
    audit: AuditLog | None,
    listener: socket.socket,
    process: EngineProcess,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    sampling: SamplingParams,
    description: EngineDescription,
    plan: Plan,
) -> int:
    privacy = Privacy(options.privacy)
    names = options.model_names or _default_names(options.engine.model, description.model)
    space = request_space(plan.breakdown.headroom_bytes)
    client, intake = process.client(max_unread_bytes=space.event_bytes), Intake(space)
    context = ServeContext(
        client=client,
        description=description,
        tokenizer=tokenizer,
        template=template,
        default_sampling=sampling,
        settings=EdgeSettings(
            model_names=names,
            max_body_bytes=space.max_body_bytes,
            max_requests=description.max_running_requests + description.max_queued_requests + _SPARE_REQUESTS,
            strict=options.engine.strict,
            answers=options.answers,
        ),
        metrics=Metrics(names[0]),
        tracing=_tracing(options.traces, names[0], client),
        limits=Limits(kv_block_bytes=(await client.memory()).block_bytes),
        access=access,
        audit=audit,
        recorder=None if options.traffic_file is None else TrafficRecorder(options.traffic_file),
        privacy=privacy,
        intake=intake,
        watchdog=_watchdog(options.engine.watchdog, plan, client, intake),
        slow_start=SlowStart(options.reuse.slow_start_seconds),
    )
    if context.tracing is not None:
        context.metrics.edge.follow_spans(context.tracing.counts)
    if privacy.redacts_log:
        rewrite_log_lines(privacy.log_line)
    if options.access.keys_file is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, partial(access.reload_if_changed, force=True))
    try:
        await warm_up(context)
        context.slow_start.begin()
        return await _serve_until_stopped(context, listener, process, options)
    finally:
        if context.watchdog is not None:
            await asyncio.to_thread(context.watchdog.stop)
        if context.tracing is not None:
            await context.tracing.close()
        await context.client.close()
        context.close()


def _tracing(options: TraceOptions | None, model_name: str, client: SocketEngineClient) -> Tracing | None:
    if options is None:
        return None

    from openautoglm.serve.tracing import Tracing  # needs an extra

    return Tracing(options, model_name, client)


def _watchdog(options: WatchdogOptions, plan: Plan, client: SocketEngineClient, intake: Intake) -> Watchdog:
    """Return the watchdog of this process: nothing here is measured, but bodies, answers and events are charged."""
    ledger_bytes = http_ledger_bytes(plan)

    def accounts() -> Accounts:
        return Accounts(
            private_bytes=private_resident_bytes(),
            measured={},
            charged={
                "bodies": intake.bodies.in_use_bytes,
                "answers": intake.answers.in_use_bytes,
                "events": client.unread_bytes,
            },
            ledger_bytes=ledger_bytes,
        )

    return Watchdog("http", accounts, ReportFiles(report_directory(options.directory, os.environ), "http"), options)


def _default_names(given: str, model: str) -> tuple[str, ...]:
    """Return the names of a model that was given none: its own, a directory's also as it was typed."""
    return tuple(dict.fromkeys((model.removeprefix("./"), model, given)))


async def _serve_until_stopped(
    context: ServeContext, listener: socket.socket, process: EngineProcess, options: ServeOptions
) -> int:
    if context.watchdog is not None:
        context.watchdog.start()
    server = Server(context, options.drain_seconds, options.tls)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(keep_running(process, context.slow_start.begin))
    beside = [asyncio.create_task(_trim_when_idle(context.drain))]
    if context.access.may_change:
        beside.append(asyncio.create_task(keep_current(context.access)))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        sys.stdout.write(
            f"serving {context.settings.model_names[0]} at {url_of(listener, secure=options.tls is not None)}/v1\n"
        )
        sys.stdout.flush()
    try:
        await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
        engine_lost = watching.done() and not serving.done()
        if engine_lost:
            server.should_exit = True
        await serving
        return 1 if engine_lost else 0
    finally:
        for task in (watching, *beside):
            task.cancel()
        # Ends also one that is being started again, whose thread would else be waited for.
        await asyncio.to_thread(process.close)
        await asyncio.gather(watching, *beside, return_exceptions=True)


async def _trim_when_idle(drain: Drain) -> None:
    """Give freed memory back to the system when requests have ended and none is under way."""
    num_trimmed = 0
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        if drain.num_active == 0 and drain.num_entered != num_trimmed:
            num_trimmed = drain.num_entered
            await asyncio.to_thread(trim_allocator)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED_EXIT_CODE)
