"""`openautoglm bench`: speed and memory of a model here, beside this machine's limits measured in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.model_argument import model_argument
from openautoglm.spec.goal import Goal

SERVE = "serve"


class BenchCommand(click.Command):
    """`bench MODEL` measures a model here, `bench serve` a running server."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401
    ) -> click.Context:
        """Hand over to the load test if that is what is asked for."""
        if args[:1] == [SERVE]:
            from openautoglm.cli.bench_serve import serve_command

            return serve_command.make_context(f"{info_name} {SERVE}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command("bench", cls=BenchCommand)
@model_argument()
@goal_options
@click.option("--repetitions", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs per figure.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a picture too.")
def bench_command(model: str, goal: Goal, repetitions: int, as_json: bool, plot: Path | None) -> None:
    """Measure prefill, decoding in batches, time to first token and memory of MODEL.

    Each speed is also given as a share of the roofline: the time that the step's operations and bytes take at the
    peak and the read bandwidth of this machine. Sequences of 256 tokens, 32 at once, unless told otherwise.

    A running server is measured by `openautoglm bench serve` (see its own --help).
    """
    from openautoglm.bench.plot import check_plotting, save_plot
    from openautoglm.bench.report import report_as_dict, report_table
    from openautoglm.bench.run import bench_model
    from openautoglm.cli.progress import LoadProgress

    if plot is not None:
        check_plotting()
    with LoadProgress() as progress:
        report = bench_model(model, goal, repetitions=repetitions, progress=progress)
    click.echo(json.dumps(report_as_dict(report), indent=2) if as_json else report_table(report))
    if plot is not None:
        save_plot(report, plot)
