"""What a server does under load, by the clients of `openautoglm bench serve`.

    python benchmarks/serve_load.py demo --cases overload idle streams

    overload  goodput at four times what the server can do, of its best goodput (deadlines are sent); 0.95 is wanted
    idle      throughput beside 2,000 idle connections, of that without them
    streams   how many of 256 clients with a stream each are answered
    http      seconds of 16 equal requests over HTTP, of those in a process without a server; 1.05 is wanted

Clients and server share the machine, so a client's work counts against the server (in "http" there is hardly any).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from openautoglm import LLM, SamplingParams
from openautoglm.bench.endpoint import Endpoint, api_url
from openautoglm.bench.find_endpoint import find_endpoint
from openautoglm.bench.load import LoadRun, run_load
from openautoglm.bench.load_report import LoadReport, ServiceLevel, make_report
from openautoglm.bench.patience import Patience
from openautoglm.bench.traffic import Arrivals, Lengths, TrafficShape, draw_traffic
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.units import format_bytes
from overload.server import RunningServer, running_server, wait_until_idle

PROMPT, OUTPUT = Lengths(low=16, high=256, logarithmic=True), Lengths(low=8, high=96, logarithmic=True)
ROWS = 16
IDLE_CONNECTIONS = 2000
STREAMS = 256
TURNS = 6
# What the engine did in a run, beside what was good of it.
ENGINE_METRICS = {
    "num_steps": "openautoglm_steps_total",
    "step_seconds": "openautoglm_step_seconds_total",
    "generated_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "recomputed_tokens": "openautoglm_recomputed_tokens_total",
}
Findings = dict[str, object]


def load(
    endpoint: Endpoint,
    num_requests: int,
    *,
    rate: float | None = None,
    clients: int | None = None,
    deadline: float | None = None,
    seed: int = 1,
) -> LoadReport:
    """Return the report of one run: open loop at `rate`, closed with `clients`."""
    shape = TrafficShape(
        num_requests=num_requests, requests_per_second=rate, arrivals=Arrivals.POISSON, prompt_tokens=PROMPT,
        output_tokens=OUTPUT, deadline_seconds=deadline, seed=seed,
    )  # fmt: skip
    run = LoadRun(endpoint=endpoint, traffic=draw_traffic(shape), num_clients=clients)
    asyncio.run(run_load(run, Patience(), seed=seed))
    return make_report(run, ServiceLevel(), seed=seed)


def overload(server: RunningServer, endpoint: Endpoint, arguments: argparse.Namespace) -> Findings:
    seconds: float = arguments.seconds
    closed = load(endpoint, 8 * ROWS, clients=ROWS)
    assert closed.whole is not None
    rate, deadline = closed.num_answered / closed.seconds, 4 * closed.whole.percentiles[90]
    told = replace(endpoint, send_deadline=True)
    answers, tokens, steps = {}, {}, {}
    before = wait_until_idle(server.url)
    for times in (0.7, 0.9, 1.0, 1.2, 4.0):
        report = load(told, round(times * rate * seconds), rate=times * rate, deadline=deadline, seed=2)
        after = wait_until_idle(server.url)
        answers[times] = report.goodput
        tokens[times] = report.good_output_tokens / report.seconds
        steps[times] = {name: after[metric] - before[metric] for name, metric in ENGINE_METRICS.items()}
        steps[times] |= {"good_tokens": report.good_output_tokens, "seconds": report.seconds}
        before = after
        print(f"  {times:3.1f} of {rate:.1f} requests/s: good {answers[times]:.2f}/s, {tokens[times]:.0f} tokens/s;"
              f" {steps[times]}; {report.errors}", flush=True)  # fmt: skip
    shares = [values[4.0] / max(value for times, value in values.items() if times < 4) for values in (answers, tokens)]
    return {"rate": rate, "deadline_seconds": deadline, "good_answers_per_second": answers,
            "good_tokens_per_second": tokens, "steps": steps, "share": shares[0],
            "share_of_tokens": shares[1]}  # fmt: skip


def idle(server: RunningServer, endpoint: Endpoint, _arguments: argparse.Namespace) -> Findings:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, IDLE_CONNECTIONS + 1000)), hard))
    parts = urlsplit(server.url)
    ratios, memory = [], []
    for _ in range(3):
        memory.append(measure_process_memory(server.process.pid).pss_bytes)
        alone = load(endpoint, 4 * ROWS, clients=ROWS)
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in range(IDLE_CONNECTIONS):
                sockets.append(stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=10)))
                # A whole request first: what waits is a kept connection, not one that owes a head.
                sockets[-1].sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            beside = load(endpoint, 4 * ROWS, clients=ROWS)
            memory.append(measure_process_memory(server.process.pid).pss_bytes)
            num_open = sum(_is_open(one) for one in sockets)
        ratios.append(beside.tokens_per_second / alone.tokens_per_second)
    return {"open_at_end": num_open, "throughput_ratios": ratios, "failed": beside.num_sent - beside.num_answered,
            "most_grown_bytes": max(memory[1::2]) - memory[0]}  # fmt: skip


def _is_open(one: socket.socket) -> bool:
    """Whether the server has kept a connection: behind the answer that lies there, nothing has ended it."""
    one.setblocking(False)
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        return True
    return False


def streams(_server: RunningServer, endpoint: Endpoint, _arguments: argparse.Namespace) -> Findings:
    report = load(endpoint, 3 * STREAMS, clients=STREAMS)
    return {"answered": report.num_answered, "of": report.num_sent, "errors": report.errors,
            "tokens_per_second": report.tokens_per_second}  # fmt: skip


def http(server: RunningServer, _endpoint: Endpoint, arguments: argparse.Namespace) -> Findings:
    sampling = SamplingParams(temperature=0.0, max_tokens=128, ignore_eos=True)
    ratios = []
    with LLM(arguments.model, quant=arguments.quant, context=arguments.context, concurrency=ROWS) as llm:
        for turn in range(1 + TURNS):
            prompts = [tuple(random.Random(turn * ROWS + row).choices(range(300, 900), k=64)) for row in range(ROWS)]
            begin = time.perf_counter()
            _read_streams(server.url, prompts, sampling)
            over_http = time.perf_counter() - begin
            begin = time.perf_counter()
            llm.generate(prompts, sampling)
            ratios.append(over_http / (time.perf_counter() - begin))
    return {"ratio": statistics.median(ratios[1:]), "ratios": ratios[1:]}  # the first turn warms both


def _read_streams(url: str, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams) -> None:
    """Ask for all at once and read to the end, by a client that does as good as nothing: it shares the processors."""
    parts = urlsplit(url)
    with selectors.DefaultSelector() as selector:
        for prompt in prompts:
            fields = {"prompt": prompt, "stream": True, "max_tokens": sampling.max_tokens, "temperature": 0,
                      "ignore_eos": sampling.ignore_eos}  # fmt: skip
            body = json.dumps(fields).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            one = socket.create_connection((parts.hostname, parts.port), timeout=600)
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            selector.register(one, selectors.EVENT_READ, bytearray())
        while selector.get_map():
            for key, _ in selector.select(600):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 16)
                key.data.extend(data)
                if not data:
                    assert b'"finish_reason":"length"' in key.data, key.data[-1000:]
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


CASES = {"http": http, "overload": overload, "idle": idle, "streams": streams}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run of the case overload")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    limits = ["--quant", arguments.quant, "--context", str(arguments.context), "--concurrency", str(ROWS)]
    findings: Findings = {}
    for name in arguments.cases:
        print(name, flush=True)
        with running_server(arguments.model, *limits) as server:
            endpoint = find_endpoint(Endpoint(url=api_url(server.url), model=""), Patience())
            found = CASES[name](server, endpoint, arguments)
        findings[name] = found
        shown = {key: format_bytes(value) if key.endswith("_bytes") and isinstance(value, int) else value
                 for key, value in found.items()}  # fmt: skip
        print(f"  {shown}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(findings, indent=1) + "\n")


if __name__ == "__main__":
    main()
