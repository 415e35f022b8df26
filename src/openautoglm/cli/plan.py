"""`openautoglm plan`: what a model will take, before anything is loaded; on which devices; and in training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import click
from click.core import ParameterSource

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.model_argument import model_argument
from openautoglm.cli.plan_devices import show_devices, show_models
from openautoglm.cli.plan_train import show_training, training_options
from openautoglm.errors import ConfigError
from openautoglm.spec.goal import Goal
from openautoglm.units import parse_bytes


@click.command("plan")
@model_argument(required=False)
@goal_options
@click.option("--server", is_flag=True, help="Plan for serve: the HTTP process beside the engine's.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SIZE",
    help="A device of this much memory, such as 24GiB, instead of this machine: what fits it. May be repeated.",
)
@click.option("--table", is_flag=True, help="Published models by devices (8 to 80 GiB, or --device); takes no MODEL.")
@training_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plan_command(
    context: click.Context,
    model: str | None,
    goal: Goal,
    server: bool,
    devices: tuple[str, ...],
    table: bool,
    training: dict[str, object],
    as_json: bool,
) -> None:
    """Show what MODEL will take in memory: weights, KV cache, workspace, runtime, headroom.

    MODEL may also be a config.json file. Only the config and the tensors' headers are read, never weights. What the
    options leave open is chosen and explained. Exit code 3: it does not fit; the nearest plans that do are printed.
    """
    sizes = tuple(parse_bytes(size) for size in devices)
    if training:
        goal = _typed(context, goal, _FIELDS)
    elif devices or table:
        goal = _typed(context, goal, _FIELDS_OF_THIS_MACHINE)
    if server and (table or training or devices):
        raise ConfigError("--server means nothing with --table, --train or --device: leave it out")
    if table:
        if model is not None or training:
            raise ConfigError(
                "--table lists published models: leave MODEL and --train out, or plan MODEL with --device"
            )
        show_models(sizes, goal, as_json=as_json)
    elif model is None:
        raise click.MissingParameter(param_type="argument", param_hint="MODEL", ctx=context)
    elif training:
        show_training(model, training, goal, sizes, as_json=as_json)
    elif devices:
        show_devices(model, sizes, goal, as_json=as_json)
    else:
        _show_plan(context, model, goal, server=server, as_json=as_json)


# Options and the goal's fields that they set.
_FIELDS_OF_THIS_MACHINE = {
    "memory": "memory_bytes",
    "threads": "num_threads",
    "objective": "objective",
    "offload": "offload",
    "place": "placement",
    "offload_dir": "offload_directory",
    **dict.fromkeys(("spill_memory", "spill_disk", "spill_dir"), "spill"),
}
_FIELDS = {
    **_FIELDS_OF_THIS_MACHINE,
    "context": "context_tokens",
    "chunk": "chunk_tokens",
    **{name: name for name in ("concurrency", "quant", "group", "activations", "kv", "attention")},
}


def _typed(context: click.Context, goal: Goal, fields: Mapping[str, str]) -> Goal:
    """Return the goal without those of `fields` that come from settings: these are wishes for this machine's runs."""
    source = context.get_parameter_source
    set_here = {field for name, field in fields.items() if source(name) is ParameterSource.DEFAULT_MAP}
    defaults = {field: getattr(Goal(), field) for field in set_here}
    return replace(goal, **defaults)


def _show_plan(context: click.Context, model: str, goal: Goal, *, server: bool, as_json: bool) -> None:
    from openautoglm.engine.assemble import prepare
    from openautoglm.engine.options import EngineOptions
    from openautoglm.errors import DoesNotFitError
    from openautoglm.planner.explain import SCHEMA_VERSION, plan_as_dict, plan_table

    try:
        plan = prepare(EngineOptions(model=model, goal=goal, server=server)).plan
    except DoesNotFitError as error:
        if not as_json:
            raise
        answer = {"schema_version": SCHEMA_VERSION, "model": model, "fits": False, "error": str(error)}
        click.echo(json.dumps({**answer, "suggestions": list(error.suggestions)}, indent=2))
        context.exit(error.exit_code)
    click.echo(json.dumps(plan_as_dict(plan), indent=2) if as_json else plan_table(plan, parts=True))
