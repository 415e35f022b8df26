"""`openautoglm simulate`: what a trace of traffic would see of a server, without running its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.load_options import load_options
from openautoglm.cli.scheduling_options import scheduling_options
from openautoglm.errors import ConfigError
from openautoglm.spec.goal import Goal
from openautoglm.spec.scheduling import SchedulingOptions

if TYPE_CHECKING:
    from openautoglm.bench.simulator import SimulatedServer

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("simulate")
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="demo", show_default=True, help="Model whose steps are measured first.")
@goal_options
@load_options
@click.option("--costs", type=_FILE, metavar="FILE", help="Read what steps take from here; no model is loaded.")
@click.option("--save-costs", type=_FILE, metavar="FILE", help="Write what was measured, for --costs.")
@click.option("--max-running", type=click.IntRange(min=1), metavar="N", help="Sequences computed at once.")
@click.option(
    "--max-queued", type=click.IntRange(min=0), default=256, show_default=True, help="Requests that may wait."
)
@scheduling_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate_command(
    trace: Path,
    model: str,
    goal: Goal,
    cache: str | None,
    strict: bool,
    costs: Path | None,
    save_costs: Path | None,
    max_running: int | None,
    max_queued: int,
    scheduling: SchedulingOptions,
    as_json: bool,
) -> None:
    """Replay TRACE, JSON lines of requests, against the real scheduler on a virtual clock.

    What steps take is measured on MODEL first, or read from a file of an earlier measurement; then thousands of
    requests take seconds. docs/serving.md describes the format of traces.
    """
    from openautoglm.bench.simulation_report import replay_as_dict, replay_table
    from openautoglm.bench.simulator import simulate
    from openautoglm.spec.trace import parse_trace

    if costs is not None and save_costs is not None:
        raise click.UsageError("--costs measures nothing that --save-costs could write: leave one out")
    try:
        requests = parse_trace(trace.read_text(encoding="utf-8").splitlines(), source=str(trace))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{trace} is not UTF-8 text: a trace is one JSON object a line") from error
    server = _measure(model, goal, cache, strict=strict) if costs is None else _read_costs(costs)
    if save_costs is not None:
        _write_costs(save_costs, server)
    run = simulate(server, requests, scheduling=scheduling, max_running=max_running, max_queued=max_queued)
    if as_json:
        click.echo(json.dumps(replay_as_dict(run, requests, model=server.model), indent=2))
    else:
        click.echo(replay_table(run, requests, model=server.model))


def _measure(model: str, goal: Goal, cache: str | None, *, strict: bool) -> SimulatedServer:
    from openautoglm.bench.calibrate import calibrate
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.engine.assemble import open_engine, prepare
    from openautoglm.engine.options import EngineOptions

    with LoadProgress() as progress:
        prepared = prepare(EngineOptions(model=model, goal=goal, cache=cache, strict=strict), to_run=True)
        opened = open_engine(prepared, progress=progress)
    try:
        click.echo(f"measuring the steps of {opened.description.model}", err=True)
        return calibrate(opened.engine, opened.executor.layout(), model=opened.description.model)
    finally:
        opened.engine.close()


def _read_costs(file: Path) -> SimulatedServer:
    import msgspec

    from openautoglm.bench.simulator import SimulatedServer

    try:
        return msgspec.json.decode(file.read_bytes(), type=SimulatedServer)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}: make it with --save-costs") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} holds no costs of steps: {error}: make it with --save-costs") from error


def _write_costs(file: Path, server: SimulatedServer) -> None:
    import msgspec

    file.write_bytes(msgspec.json.format(msgspec.json.encode(server), indent=2) + b"\n")
