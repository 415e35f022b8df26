"""The options of the scheduler: how fast tokens should come, and how far queues differ."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from openautoglm.spec.scheduling import AGING_SECONDS, SchedulingOptions

_TARGET = click.FloatRange(min=0, min_open=True, max=3600)
_OPTIONS = (
    click.option(
        "--slo-itl",
        type=_TARGET,
        metavar="SECONDS",
        help="Most time between two tokens of a stream: prompts are computed in pieces that leave it so.",
    ),
    click.option(
        "--slo-ttft",
        type=_TARGET,
        metavar="SECONDS",
        help="Most time to a first token: for it, streams without --slo-itl may become slower.",
    ),
    click.option(
        "--queue-aging",
        type=click.FloatRange(min=0, max=86400),
        default=AGING_SECONDS,
        show_default=True,
        metavar="SECONDS",
        help="Waiting this much longer makes up for a lower queue (high, normal, batch).",
    ),
)


def scheduling_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command and pass them to it as one `scheduling: SchedulingOptions`."""

    @functools.wraps(command)
    def with_scheduling(
        *args: object, slo_itl: float | None, slo_ttft: float | None, queue_aging: float, **kwargs: object
    ) -> object:
        options = SchedulingOptions(
            itl_seconds=slo_itl, ttft_seconds=slo_ttft, eases_streams=True, aging_seconds=queue_aging
        )
        return command(*args, scheduling=options, **kwargs)

    for option in reversed(_OPTIONS):
        with_scheduling = option(with_scheduling)
    return with_scheduling
