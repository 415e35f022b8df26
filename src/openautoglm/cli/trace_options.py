"""The options of `serve` that say where traces go."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

_OPTIONS = (
    click.option(
        "--otlp-endpoint",
        metavar="URL",
        help="OpenTelemetry collector that gets traces over HTTP, such as http://127.0.0.1:4318.",
    ),
    click.option(
        "--trace-sample",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of requests that are traced, where their clients do not say (1).",
    ),
)


def trace_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `traces`, None without a collector."""

    @functools.wraps(command)
    def with_traces(*args: object, otlp_endpoint: str | None, trace_sample: float | None, **kwargs: object) -> object:
        from openautoglm.serve.trace_options import TraceOptions

        if otlp_endpoint is None:
            if trace_sample is not None:
                raise click.UsageError("--trace-sample needs --otlp-endpoint")
            return command(*args, traces=None, **kwargs)
        ratio = 1.0 if trace_sample is None else trace_sample
        return command(*args, traces=TraceOptions(endpoint=otlp_endpoint, sample_ratio=ratio), **kwargs)

    for option in reversed(_OPTIONS):
        with_traces = option(with_traces)
    return with_traces
