"""`openautoglm bench serve`: a load test of a running server, of this package or any other with OpenAI's API."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openautoglm.errors import ConfigError
from openautoglm.spec.trace import TraceRequest, parse_trace
from openautoglm.units import parse_seconds

if TYPE_CHECKING:
    from openautoglm.bench.load import LoadRun

INTERRUPTED_EXIT_CODE = 130


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A time such as 250ms or 2s."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_seconds(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTest:
    """What was asked for on the command line; times in seconds."""

    url: str
    model: str
    api_key: str | None
    api: str
    ignore_eos: bool
    extra_body: str
    timeout: float
    connect_timeout: float
    rate: float | None
    clients: int | None
    trace: Path | None
    arrivals: str
    requests: int
    prompt_tokens: str
    output_tokens: str
    seed: int
    slo_ttft: float | None
    slo_itl: float | None
    slo_e2e: float | None
    deadline: float | None
    send_deadlines: bool
    as_json: bool
    output: Path | None


_OPTIONS = (
    click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server."),
    click.option("--model", default="", metavar="NAME", help="Model to ask for (default: the first that it lists)."),
    click.option(
        "--api-key", envvar="OPENAUTOGLM_API_KEY", metavar="KEY", help="Its key; better in OPENAUTOGLM_API_KEY."
    ),
    click.option("--api", type=click.Choice(["completions", "chat"]), default="completions", show_default=True),
    click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="R", help="Open loop: requests/s."),
    click.option("--clients", type=click.IntRange(1, 100_000), metavar="N", help="Closed loop: N clients."),
    click.option(
        "--trace",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Times and lengths from a file, one JSON object a line (see docs/serving.md).",
    ),
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "fixed"]),
        default="poisson",
        show_default=True,
        help="With --rate: random gaps, or equal ones.",
    ),
    click.option("--requests", type=click.IntRange(1, 1_000_000), default=100, show_default=True, metavar="N"),
    click.option(
        "--prompt-tokens",
        default="128",
        show_default=True,
        metavar="N|A-B|log:A-B",
        help="Lengths of prompts: one, uniform, log-uniform.",
    ),
    click.option("--output-tokens", default="64", show_default=True, metavar="N|A-B|log:A-B", help="Of answers."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of traffic and prompts."),
    click.option("--slo-ttft", type=Seconds(), metavar="TIME", help="A good answer's first token comes within this."),
    click.option("--slo-itl", type=Seconds(), metavar="TIME", help="Its mean time per token after that."),
    click.option("--slo-e2e", type=Seconds(), metavar="TIME", help="Its end comes within this."),
    click.option("--deadline", type=Seconds(), metavar="TIME", help="The same, as a deadline of each request."),
    click.option("--send-deadlines", is_flag=True, help="Tell the server deadlines (deadline_seconds, this package)."),
    click.option(
        "--ignore-eos/--obey-eos", default=True, show_default=True, help="Whether answers go on to their length."
    ),
    click.option("--extra-body", default="{}", metavar="JSON", help="Fields to add to each request."),
    click.option(
        "--timeout", type=Seconds(), default=600.0, metavar="TIME", help="Longest wait for an answer (10min)."
    ),
    click.option("--connect-timeout", type=Seconds(), default=10.0, metavar="TIME", help="For a connection (10s)."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option(
        "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="JSON with each request, too."
    ),
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets them as one `LoadTest`."""

    def with_test(**options: Any) -> None:  # noqa: ANN401 - click passes what it parsed
        command(LoadTest(**options))

    with_test.__doc__ = command.__doc__
    decorated: Callable[..., None] = with_test
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@click.command("serve")
@_with_options
def serve_command(test: LoadTest) -> None:
    """Load a running server and report throughput, latencies, goodput and errors.

    With --rate or --trace requests are sent when they are due, whatever became of those before (open loop); with
    --clients each client asks again when it has its answer (closed loop). Ctrl-C ends it with what there is so far.
    """
    if importlib.util.find_spec("httpx") is None:
        raise ConfigError("a load test needs httpx: pip install 'openautoglm[bench]'")
    from openautoglm.bench.load_report import ServiceLevel, load_report_as_dict, load_report_table, make_report

    level = ServiceLevel(first_token_seconds=test.slo_ttft, token_gap_seconds=test.slo_itl, whole_seconds=test.slo_e2e)
    run, interrupted = _load(test)
    report = make_report(run, level, seed=test.seed)
    click.echo(json.dumps(load_report_as_dict(report), indent=2) if test.as_json else load_report_table(report))
    if test.output is not None:
        document = load_report_as_dict(report, run.outcomes)
        test.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED_EXIT_CODE)
    if not report.num_answered:
        raise click.exceptions.Exit(1)


def _load(test: LoadTest) -> tuple[LoadRun, bool]:
    """Run the load test, with a bar on a terminal; return it, and whether it was interrupted."""
    from openautoglm.bench.endpoint import Api, Endpoint, api_url
    from openautoglm.bench.find_endpoint import find_endpoint
    from openautoglm.bench.load import LoadRun, run_load
    from openautoglm.bench.patience import Patience

    traffic = _traffic(test)
    patience = Patience(connect_seconds=test.connect_timeout, answer_seconds=test.timeout)
    endpoint = Endpoint(
        url=api_url(test.url),
        model=test.model,
        api=Api(test.api),
        api_key=test.api_key,
        ignore_eos=test.ignore_eos,
        send_deadline=test.send_deadlines,
        extra=_extra(test.extra_body),
    )
    run = LoadRun(endpoint=find_endpoint(endpoint, patience), traffic=traffic, num_clients=test.clients)
    with click.progressbar(
        range(len(traffic)), label="requests", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        try:
            asyncio.run(run_load(run, patience, seed=test.seed, on_outcome=lambda _outcome: bar.update(1)))
        except KeyboardInterrupt:
            return run, True
    return run, False


def _traffic(test: LoadTest) -> tuple[TraceRequest, ...]:
    from openautoglm.bench.traffic import Arrivals, TrafficShape, draw_traffic, parse_lengths

    if sum(one is not None for one in (test.rate, test.clients, test.trace)) != 1:
        raise click.UsageError("say how to ask: one of --rate, --clients and --trace")
    if test.trace is not None:
        try:
            with test.trace.open(encoding="utf-8") as lines:
                return parse_trace(lines, source=str(test.trace))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{test.trace} is not UTF-8 ({error}): expected one JSON object a line") from None
    return draw_traffic(
        TrafficShape(
            num_requests=test.requests,
            requests_per_second=test.rate,
            arrivals=Arrivals(test.arrivals),
            prompt_tokens=parse_lengths(test.prompt_tokens),
            output_tokens=parse_lengths(test.output_tokens),
            deadline_seconds=test.deadline,
            seed=test.seed,
        )
    )


def _extra(text: str) -> tuple[tuple[str, object], ...]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--extra-body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError("--extra-body must be a JSON object")
    return tuple(fields.items())
