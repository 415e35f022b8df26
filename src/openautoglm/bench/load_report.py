"""A load test's report: speeds, percentiles, goodput and errors, as a table and as a dictionary for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from openautoglm.bench.load import LoadRun
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.spread import Spread, spread_lines, spread_of

SCHEMA_VERSION = 1
# A client that sends this late, or is busy this much of the time, measures itself.
LATE_CLIENT_SECONDS = 0.05
BUSY_CLIENT_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """What a good answer is: whole, within the request's own deadline if it has one, and within these, in seconds.

    `token_gap_seconds` bounds the mean time between two tokens of an answer after the first.
    """

    first_token_seconds: float | None = None
    token_gap_seconds: float | None = None
    whole_seconds: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """Whether an outcome is a good answer."""
        if outcome.error is not None:
            return False
        limits = (
            (self.first_token_seconds, outcome.first_token_seconds),
            (self.token_gap_seconds, outcome.token_gap_seconds),
            (self.whole_seconds, outcome.whole_seconds),
            (outcome.request.deadline_seconds, outcome.whole_seconds),
        )
        return all(most is None or seconds is None or seconds <= most for most, seconds in limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One load test. Times are those of whole answers; a spread is None where there was nothing to measure.

    `seconds` run from the first request's time to the last end. `late_send_seconds` tells how late the client itself
    sent (99th percentile), `client_busy_share` how much of one core it took.
    """

    url: str
    model: str
    api: str
    loop: str
    seed: int
    complete: bool
    level: ServiceLevel
    num_planned: int
    num_sent: int
    num_answered: int
    num_good: int
    errors: dict[str, int]
    messages: dict[str, str]
    seconds: float
    prompt_tokens: int
    output_tokens: int
    good_output_tokens: int
    tokens_told: bool
    first_token: Spread | None
    gap: Spread | None
    token_gap: Spread | None
    whole: Spread | None
    late_send_seconds: float
    client_busy_share: float

    @property
    def goodput(self) -> float:
        """Good answers per second."""
        return self.num_good / self.seconds if self.seconds else 0.0

    @property
    def good_share(self) -> float:
        """Good answers, of all requests that were sent."""
        return self.num_good / self.num_sent if self.num_sent else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of whole answers per second."""
        return self.output_tokens / self.seconds if self.seconds else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful."""
        found = []
        if not self.complete:
            found.append(f"interrupted: {self.num_planned - self.num_sent} of {self.num_planned} requests had no end")
        if self.late_send_seconds > LATE_CLIENT_SECONDS:
            found.append(
                f"this client sent up to {self.late_send_seconds * 1e3:.0f} ms late (p99): it is too slow here"
            )
        if self.client_busy_share > BUSY_CLIENT_SHARE:
            found.append(f"this client was busy {self.client_busy_share:.0%} of the time: it may measure itself")
        if not self.tokens_told:
            found.append("the server does not tell how many tokens answers have: pieces of text were counted")
        return tuple(found)


def make_report(run: LoadRun, level: ServiceLevel, *, seed: int = 0) -> LoadReport:
    """Return the report of a run, or of as much of it as has ended."""
    answered = [one for one in run.outcomes if one.error is None]
    good = [one for one in answered if level.met_by(one)]
    failed = [one for one in run.outcomes if one.error is not None]
    first_due = min((one.due_seconds for one in run.outcomes), default=0.0)
    last_end = max((one.end_seconds for one in run.outcomes), default=0.0)
    late = [one.sent_seconds - one.due_seconds for one in run.outcomes]
    messages: dict[str, str] = {}
    for one in failed:
        messages.setdefault(str(one.error), one.message)
    return LoadReport(
        url=run.endpoint.url,
        model=run.endpoint.model,
        api=run.endpoint.api.value,
        loop="open loop" if run.num_clients is None else f"closed loop of {run.num_clients} clients",
        seed=seed,
        complete=run.complete,
        level=level,
        num_planned=len(run.traffic),
        num_sent=len(run.outcomes),
        num_answered=len(answered),
        num_good=len(good),
        errors=dict(Counter(str(one.error) for one in failed).most_common()),
        messages=messages,
        seconds=last_end - first_due,
        prompt_tokens=sum(one.prompt_tokens or 0 for one in answered),
        output_tokens=sum(one.num_output_tokens for one in answered),
        good_output_tokens=sum(one.num_output_tokens for one in good),
        tokens_told=all(one.output_tokens is not None for one in answered),
        first_token=spread_of(one.first_token_seconds for one in answered),
        gap=spread_of(gap for one in answered for gap in one.gap_seconds),
        token_gap=spread_of(one.token_gap_seconds for one in answered),
        whole=spread_of(one.whole_seconds for one in answered),
        late_send_seconds=float(np.percentile(late, 99)) if late else 0.0,
        client_busy_share=run.processor_seconds / run.seconds if run.seconds else 0.0,
    )


def load_report_table(report: LoadReport) -> str:
    """Return the report as aligned text."""
    lines = [
        f"load test of {report.url} ({report.model}, {report.api}), {report.loop}",
        f"{report.num_sent} requests in {report.seconds:.2f} s: {report.num_answered} answered, "
        f"{report.num_sent - report.num_answered} failed",
        f"throughput  {_per_second(report.num_answered, report)} requests/s, "
        f"{report.tokens_per_second:.1f} tokens/s out, {_per_second(report.prompt_tokens, report)} tokens/s in",
        f"goodput     {report.goodput:.3g} requests/s, {report.good_share:.1%} of all, "
        f"{_per_second(report.good_output_tokens, report)} tokens/s ({_level_text(report)})",
    ]
    spreads = (
        ("time to first token", report.first_token),
        ("between pieces", report.gap),
        ("per token, of a request", report.token_gap),
        ("whole answer", report.whole),
    )
    lines += ["", *spread_lines(spreads)]
    if report.errors:
        lines += ["", "failed:"]
        lines += [f"  {count:6}  {name}: {report.messages[name]}" for name, count in report.errors.items()]
    return "\n".join([*lines, *(f"note: {warning}" for warning in report.warnings)])


def load_report_as_dict(report: LoadReport, outcomes: Sequence[Outcome] = ()) -> dict[str, object]:
    """Return the report as plain values with units in the names; with `outcomes`, each request's figures too."""
    spreads = {"ttft": report.first_token, "itl": report.gap, "tpot": report.token_gap, "e2e": report.whole}
    document: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "url": report.url,
        "model": report.model,
        "api": report.api,
        "loop": report.loop,
        "seed": report.seed,
        "complete": report.complete,
        "warnings": list(report.warnings),
        "requests": {"planned": report.num_planned, "ended": report.num_sent, "answered": report.num_answered},
        "errors": [
            {"type": name, "count": count, "message": report.messages[name]} for name, count in report.errors.items()
        ],
        "seconds": report.seconds,
        "requests_per_second": report.num_answered / report.seconds if report.seconds else 0.0,
        "prompt_tokens_per_second": report.prompt_tokens / report.seconds if report.seconds else 0.0,
        "output_tokens_per_second": report.tokens_per_second,
        "goodput": {
            "slo_seconds": asdict(report.level),
            "requests": report.num_good,
            "share": report.good_share,
            "requests_per_second": report.goodput,
            "output_tokens_per_second": report.good_output_tokens / report.seconds if report.seconds else 0.0,
        },
        **{f"{name}_seconds": None if one is None else one.as_dict() for name, one in spreads.items()},
        "client": {"late_send_p99_seconds": report.late_send_seconds, "busy_share": report.client_busy_share},
    }
    if outcomes:
        document["outcomes"] = [_outcome_as_dict(one, report.level) for one in sorted(outcomes, key=_index)]
    return document


def _outcome_as_dict(outcome: Outcome, level: ServiceLevel) -> dict[str, object]:
    return {
        "index": outcome.index,
        "request_id": outcome.request_id,
        "due_seconds": outcome.due_seconds,
        "sent_seconds": outcome.sent_seconds,
        "end_seconds": outcome.end_seconds,
        "ttft_seconds": outcome.first_token_seconds,
        "tpot_seconds": outcome.token_gap_seconds,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.num_output_tokens,
        "finish_reason": outcome.finish_reason,
        "deadline_seconds": outcome.request.deadline_seconds,
        "good": level.met_by(outcome),
        "error": outcome.error,
        "message": outcome.message,
    }


def _index(outcome: Outcome) -> int:
    return outcome.index


def _per_second(count: int, report: LoadReport) -> str:
    return f"{count / report.seconds:.1f}" if report.seconds else "0.0"


def _level_text(report: LoadReport) -> str:
    level = report.level
    limits = (
        ("first token", level.first_token_seconds),
        ("per token", level.token_gap_seconds),
        ("whole answer", level.whole_seconds),
    )
    parts = [f"{name} <= {1e3 * seconds:g} ms" for name, seconds in limits if seconds is not None]
    return ", ".join(parts) or "no SLO given: deadlines alone count"
