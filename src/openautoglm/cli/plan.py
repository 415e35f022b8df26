"""`openautoglm plan`: what a model will take, before anything is loaded."""

from __future__ import annotations

import json

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.model_argument import model_argument
from openautoglm.spec.goal import Goal


@click.command("plan")
@model_argument()
@goal_options
@click.option("--server", is_flag=True, help="Plan for serve: the HTTP process beside the engine's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plan_command(context: click.Context, model: str, goal: Goal, server: bool, as_json: bool) -> None:
    """Show what MODEL will take in memory: weights, KV cache, workspace, runtime, headroom.

    MODEL may also be a config.json file. Only the config and the tensors' headers are read, never weights. What the
    options leave open is chosen and explained. Exit code 3: it does not fit; the nearest plans that do are printed.
    """
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
