"""How many rejects of a real server under overload were needless: a load test over HTTP, replayed on the same server.

    python benchmarks/needless_over_http.py demo --requests 160 --load 1 --load 2 --load 4 --sample 12

Per load (of what the server can do): a trace with deadlines is sent at its times; a reject is a request that is
refused, ended or late. Then rejects are sampled, and for each the accepted requests are sent again together with it:
needless is a reject of which the replay meets every deadline. `told` replays send the deadlines, so that the server may
hold requests back for each other; `untold` ones do not, and first come is first served. `control` is the same without
any reject: where it misses deadlines, the machine's noise, not the reject, may be why a replay failed. The share of
needless rejects is their share of the sample, times the rejects, over all requests.

Answers end where the trace says, which the server is not told: the end-of-text token is banned until then, and forced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from openautoglm.bench.endpoint import Endpoint, api_url
from openautoglm.bench.find_endpoint import find_endpoint
from openautoglm.bench.load import LoadRun, run_load
from openautoglm.bench.load_report import ServiceLevel, make_report
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.patience import Patience
from openautoglm.checkpoint.hub import resolve
from openautoglm.spec.trace import TraceRequest
from overload.server import running_server, wait_until_idle
from overload.trace import Arrival, TraceShape, make_trace

PROMPT_TOKENS, ANSWER_TOKENS, MAX_TOKENS = (16, 384), (8, 192), 256
SLACK = (2.0, 8.0)
LEVEL = ServiceLevel()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedLength(Endpoint):
    """Answers end at `output_tokens`, of which the server knows `max_tokens` only."""

    end_token: int

    def body(self, request: TraceRequest, prompt: str) -> dict[str, object]:
        forced = {"min_tokens": request.output_tokens, "logit_bias": {str(self.end_token): 100}}
        # Not by super(): a class with slots is made twice.
        return Endpoint.body(self, request, prompt) | forced


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load. `kinds` are the rejects by type; of the sample of them, needless ones with and without deadlines."""

    load: float
    num_requests: int
    num_rejects: int
    kinds: dict[str, int]
    num_sampled: int
    num_needless_untold: int
    num_needless_told: int
    control_misses_untold: int
    control_misses_told: int

    def share(self, num_needless: int) -> float:
        """Return needless rejects of all requests, as the sample tells."""
        return num_needless / max(1, self.num_sampled) * self.num_rejects / self.num_requests


def send(endpoint: Endpoint, traffic: Sequence[TraceRequest], *, clients: int | None = None) -> list[Outcome]:
    """Return what came of the traffic, in its order, when the server is idle again."""
    run = LoadRun(endpoint=endpoint, traffic=traffic, num_clients=clients)
    asyncio.run(run_load(run, Patience()))
    wait_until_idle(endpoint.url.removesuffix("/v1"))
    return sorted(run.outcomes, key=lambda one: one.index)


def traffic_of(trace: Sequence[Arrival]) -> list[TraceRequest]:
    return [
        TraceRequest(
            arrival_seconds=one.seconds,
            prompt_tokens=one.prompt_tokens,
            output_tokens=one.answer_tokens,
            max_tokens=one.max_tokens,
            deadline_seconds=one.deadline_seconds,
        )
        for one in trace
    ]


def shape_of(endpoint: Endpoint, num_requests: int, concurrency: int, seed: int) -> tuple[TraceShape, float]:
    """Return the shape of traces in this server's own times, and how many requests it ends per second."""
    shape = TraceShape(
        num_requests=num_requests, requests_per_second=1.0, prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS,
        max_tokens=MAX_TOKENS, slack=SLACK, busy_seconds_per_token=1.0, prompt_seconds_per_token=1.0, seed=seed,
    )  # fmt: skip
    traffic = traffic_of(make_trace(shape))
    lone = send(endpoint, [one_request(PROMPT_TOKENS[1], 1)] * 5, clients=1)
    half = LoadRun(endpoint=endpoint, traffic=traffic[: num_requests // 2], num_clients=concurrency // 2)
    full = LoadRun(endpoint=endpoint, traffic=traffic, num_clients=concurrency)
    for run in (half, full):
        asyncio.run(run_load(run, Patience()))
    busy = make_report(half, LEVEL).token_gap
    assert busy is not None
    prompt_seconds = sorted(one.whole_seconds for one in lone)[2] / PROMPT_TOKENS[1]
    priced = replace(shape, busy_seconds_per_token=busy.mean, prompt_seconds_per_token=prompt_seconds)
    report = make_report(full, LEVEL)
    return priced, report.num_answered / report.seconds


def one_request(prompt: int, output: int) -> TraceRequest:
    return TraceRequest(arrival_seconds=0.0, prompt_tokens=prompt, output_tokens=output, max_tokens=MAX_TOKENS)


def measure(endpoint: ForcedLength, shape: TraceShape, load: float, rate: float, num_sampled: int) -> Row:
    told, untold = replace(endpoint, send_deadline=True), replace(endpoint, send_deadline=False)
    traffic = traffic_of(make_trace(replace(shape, requests_per_second=load * rate)))
    outcomes = send(told, traffic)
    rejects = [one.index for one in outcomes if not LEVEL.met_by(one)]
    accepted = [index for index in range(len(traffic)) if index not in set(rejects)]
    sample = random.Random(shape.seed).sample(rejects, min(num_sampled, len(rejects)))

    def misses(how: Endpoint, *more: int) -> int:
        chosen = sorted([*accepted, *more])
        return sum(not LEVEL.met_by(one) for one in send(how, [traffic[index] for index in chosen]))

    return Row(
        load=load,
        num_requests=len(traffic),
        num_rejects=len(rejects),
        kinds=dict(Counter(outcomes[index].error or "late" for index in rejects)),
        num_sampled=len(sample),
        num_needless_untold=sum(misses(untold, index) == 0 for index in sample),
        num_needless_told=sum(misses(told, index) == 0 for index in sample),
        control_misses_untold=misses(untold),
        control_misses_told=misses(told),
    )


def end_token(model: str) -> int:
    """Return the token that ends this model's answers."""
    config = json.loads((resolve(model) / "generation_config.json").read_text())
    found = config["eos_token_id"]
    return int(found[0] if isinstance(found, list) else found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=160, help="requests of one trace")
    parser.add_argument("--load", type=float, action="append", help="share of what the server can do")
    parser.add_argument("--sample", type=int, default=12, help="rejects that are replayed, per load")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--context", type=int, default=704)
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    limits = ["--quant", arguments.quant, "--context", str(arguments.context)]
    rows = []
    with running_server(arguments.model, *limits, "--concurrency", str(arguments.concurrency)) as server:
        plain = find_endpoint(Endpoint(url=api_url(server.url), model="", ignore_eos=False), Patience())
        fields = {name: getattr(plain, name) for name in ("url", "model", "ignore_eos", "size")}
        endpoint = ForcedLength(**fields, end_token=end_token(arguments.model))
        shape, rate = shape_of(endpoint, arguments.requests, arguments.concurrency, arguments.seed)
        print(
            f"the server ends {rate:.2f} requests/s; a token beside others takes {shape.busy_seconds_per_token:.4f} s"
        )
        print("load  requests  rejects  sampled  needless untold/told  of requests untold/told  control misses")
        for load in arguments.load or (1.0, 2.0, 4.0):
            row = measure(endpoint, shape, load, rate, arguments.sample)
            rows.append(row)
            shares = " / ".join(f"{row.share(one):6.2%}" for one in (row.num_needless_untold, row.num_needless_told))
            print(
                f"{row.load:4.1f}  {row.num_requests:8}  {row.num_rejects:7}  {row.num_sampled:7}  "
                f"{row.num_needless_untold:15} / {row.num_needless_told:2}  {shares:>26}  "
                f"{row.control_misses_untold:8} / {row.control_misses_told}  {row.kinds}",
                flush=True,
            )
    total = sum(row.num_requests for row in rows)
    for name in ("untold", "told"):
        needless = sum(row.share(getattr(row, f"num_needless_{name}")) * row.num_requests for row in rows)
        print(f"{name}: about {needless:.1f} of {total} requests rejected needlessly, {needless / total:.2%}")
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
