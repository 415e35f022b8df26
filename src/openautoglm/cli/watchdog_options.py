"""The options of the watchdog: when growth of memory is reported by itself, and where reports go."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from openautoglm.spec.watchdog import WatchdogOptions
from openautoglm.units import parse_bytes_per_minute

_OPTIONS = (
    click.option(
        "--watchdog",
        type=click.Choice(("on", "off")),
        default="on",
        show_default=True,
        help="Report memory that grows beyond what is accounted for: by 15 % of the ledger within 5 minutes.",
    ),
    click.option(
        "--watchdog-slope", metavar="RATE", help="Report such growth also at this rate, kept up, such as 10MiB/min."
    ),
    click.option("--log-dir", metavar="DIR", help="Where memory reports go (~/.local/state/openautoglm/reports)."),
)


def watchdog_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command and pass them to it as one `watchdog: WatchdogOptions`."""

    @functools.wraps(command)
    def with_watchdog(
        *args: object, watchdog: str, watchdog_slope: str | None, log_dir: str | None, **kwargs: object
    ) -> object:
        slope = None if watchdog_slope is None else parse_bytes_per_minute(watchdog_slope)
        if watchdog == "off" and slope is not None:
            raise click.UsageError("--watchdog-slope says when to report, --watchdog off says never: leave one out")
        options = WatchdogOptions(enabled=watchdog == "on", slope_bytes_per_minute=slope, directory=log_dir)
        return command(*args, watchdog=options, **kwargs)

    for option in reversed(_OPTIONS):
        with_watchdog = option(with_watchdog)
    return with_watchdog
