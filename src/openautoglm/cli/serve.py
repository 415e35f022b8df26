"""`openautoglm serve`: a model behind an OpenAI-compatible API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openautoglm.cli.access_options import access_options
from openautoglm.cli.answer_options import answer_options
from openautoglm.cli.audit_options import audit_options
from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.load_options import load_options
from openautoglm.cli.model_argument import model_argument
from openautoglm.cli.privacy_options import privacy_options
from openautoglm.cli.receipt_option import receipt_option
from openautoglm.cli.reuse_options import reuse_options
from openautoglm.cli.scheduling_options import scheduling_options
from openautoglm.cli.tls_options import tls_options
from openautoglm.cli.trace_options import trace_options
from openautoglm.cli.watchdog_options import watchdog_options
from openautoglm.spec.goal import Goal
from openautoglm.spec.reuse import ReuseOptions
from openautoglm.spec.scheduling import SchedulingOptions
from openautoglm.spec.watchdog import WatchdogOptions

if TYPE_CHECKING:
    from openautoglm.serve.access import AccessOptions
    from openautoglm.serve.answer_options import AnswerOptions
    from openautoglm.serve.audit import AuditOptions
    from openautoglm.serve.privacy import PrivacyOptions
    from openautoglm.serve.trace_options import TraceOptions
    from openautoglm.serve.web import Tls

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("serve")
@model_argument()
@goal_options
@load_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; outside needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free one.")
@access_options
@privacy_options
@audit_options
@tls_options
@click.option(
    "--served-model-name",
    "model_names",
    multiple=True,
    metavar="NAME",
    help="Name that clients ask for, instead of MODEL; may be given several times.",
)
@click.option("--max-running", type=click.IntRange(min=1), metavar="N", help="Sequences computed at once.")
@click.option(
    "--max-queued", type=click.IntRange(min=0), default=256, show_default=True, help="Requests that may wait."
)
@answer_options
@scheduling_options
@click.option("--record-traffic", type=_FILE, metavar="FILE", help="Write a trace for `simulate`: no prompts, no text.")
@receipt_option
@reuse_options
@watchdog_options
@trace_options
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long requests may go on after SIGTERM.",
)
def serve_command(
    model: str,
    goal: Goal,
    cache: str | None,
    strict: bool,
    host: str,
    port: int,
    access: AccessOptions,
    privacy: PrivacyOptions,
    audit: AuditOptions | None,
    tls: Tls | None,
    model_names: tuple[str, ...],
    max_running: int | None,
    max_queued: int,
    scheduling: SchedulingOptions,
    record_traffic: Path | None,
    receipt: Path | None,
    reuse: ReuseOptions,
    watchdog: WatchdogOptions,
    answers: AnswerOptions,
    traces: TraceOptions | None,
    drain_seconds: float,
) -> None:
    """Serve MODEL over HTTP: chat and plain completions, models, tokenize, health, metrics.

    The memory plan is printed before loading, the receipt after, the address when requests are taken. SIGTERM or
    Ctrl-C lets running requests finish and exits with 0; a second one ends them at once.
    """
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.engine.options import EngineOptions
    from openautoglm.serve.main import serve
    from openautoglm.serve.options import ServeOptions

    engine = EngineOptions(model=model, goal=goal, max_running=max_running, max_queued=max_queued, server=True)
    engine = replace(engine, cache=cache, strict=strict, scheduling=scheduling, watchdog=watchdog)
    options = ServeOptions(
        engine=replace(engine, speculation=reuse.speculation, sessions=reuse.sessions),
        host=host,
        port=port,
        access=access,
        privacy=privacy,
        audit=audit,
        tls=tls,
        model_names=model_names,
        drain_seconds=drain_seconds,
        receipt_file=receipt,
        answers=answers,
        traces=traces,
        reuse=reuse,
        traffic_file=record_traffic,
    )
    with LoadProgress() as progress:
        raise click.exceptions.Exit(serve(options, progress=progress, on_loaded=progress.finish))
