"""Ends the engine of a real server at random moments, under requests in every stage, and times how it recovers.

    python benchmarks/engine_kills.py --kills 100 --stops 5 --output benchmarks/results/engine_kills.json

A kill is SIGKILL, a stop is SIGSTOP. After each: the server is not ready within 2 s (a stopped engine: 4 s), requests
end with a typed error within 5 s (10 s), the same question gets the same answer within the load's time and 5 s more
(15 s), and nothing is left: no file, socket, shared memory, process or descriptor. Exit code 1 where one of these
fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx

from overload.server import RunningServer, running_server, wait_until_idle

POLL_SECONDS = 0.02
ANSWER_SECONDS = 60.0
CONTEXT_TOKENS = 1024
PROGRAMS = ("template_worker", "engine.worker")
QUESTION = {"messages": [{"role": "user", "content": "What does textwrap.dedent do?"}], "max_tokens": 16,
            "temperature": 0}  # fmt: skip
# Small enough that requests wait and are set back, so that they are met in every stage.
SETTINGS = (
    "--threads", "1", "--context", str(CONTEXT_TOKENS), "--concurrency", "2", "--max-running", "3", "--chunk", "64",
    "--spill-memory", "4MiB", "--spill-disk", "16MiB",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """How soon things must have happened after a signal; `serving_seconds` come on top of the load's time."""

    not_ready_seconds: float
    ended_seconds: float
    serving_seconds: float


BARS = {
    signal.SIGKILL: Bars(not_ready_seconds=2.0, ended_seconds=5.0, serving_seconds=5.0),
    # A stopped engine is found by its silence; a health check waits 2 s for it.
    signal.SIGSTOP: Bars(not_ready_seconds=4.0, ended_seconds=10.0, serving_seconds=15.0),
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one request ended, and when; `code` is the error's, None for a whole answer."""

    code: str | None
    num_events: int
    monotonic_seconds: float


@dataclass(slots=True, kw_only=True)
class End:
    """One signal and what came of it; seconds count from the signal."""

    signal: str
    after_seconds: float
    not_ready_seconds: float
    ended_seconds: float
    serving_seconds: float
    codes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """One request in a thread of its own, until it ends or fails."""

    def __init__(self, url: str, body: dict[str, object]) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url, body
        self.outcome = Outcome(code="unanswered", num_events=0, monotonic_seconds=0.0)

    def run(self) -> None:
        outcome = self.outcome
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=self._body, timeout=ANSWER_SECONDS) as answer:
                last = ""
                for line in answer.iter_lines():
                    if line.strip():
                        last = line.removeprefix("data: ")
                        outcome.num_events += 1
            outcome.code = code_of(last)
        except httpx.HTTPError as error:
            outcome.code = type(error).__name__
        outcome.monotonic_seconds = time.monotonic()


def code_of(last: str) -> str | None:
    """Return the code of the error that ended an answer, None for one that ended well."""
    if last == "[DONE]":
        return None
    value = json.loads(last)
    error = value.get("error")
    return None if error is None and "choices" in value else str((error or {}).get("code"))


class Health(threading.Thread):
    """Asks for the server's health all the time."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._stopped = url, threading.Event()
        self.seen: list[tuple[float, bool]] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=ANSWER_SECONDS) as client:
            while not self._stopped.wait(POLL_SECONDS):
                ready = client.get("/health").status_code == 200
                self.seen.append((time.monotonic(), ready))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def first(self, ready: bool, since: float) -> float | None:
        """Return when it was first (not) ready after a moment."""
        return next((seconds for seconds, state in list(self.seen) if seconds > since and state is ready), None)


def children(pid: int) -> dict[int, str]:
    """Return the children of a process, also those that its threads started, and which program each is."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            with contextlib.suppress(FileNotFoundError):
                command = Path(f"/proc/{child}/cmdline").read_text()
                found[int(child)] = next((name for name in PROGRAMS if name in command), command or "zombie")
    return found


def engine_of(server: RunningServer) -> int | None:
    """Return the engine's process id, None while there is none."""
    return next((pid for pid, name in children(server.process.pid).items() if name == "engine.worker"), None)


def num_open(server: RunningServer) -> Counter[str]:
    """Return how many descriptors of each kind the server's own process has open."""
    found = Counter[str]()
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[str(entry.readlink()).partition(":")[0]] += 1
    return found


def left_behind(server: RunningServer, directory: Path, num_sockets: int) -> dict[str, object]:
    """Return what a server has outside its memory: it must be the same after any number of engines."""
    descriptors = num_open(server)
    return {
        "files": sorted(str(path.relative_to(directory)) for path in directory.rglob("*")),
        "shared memory": sorted(path.name for path in Path("/dev/shm").glob("*openautoglm*")),
        "children": sorted(children(server.process.pid).values()),
        "descriptors": {name: count for name, count in descriptors.items() if name != "socket"},
        # Connections that are kept alive come and go; there must never be more of them than at first.
        "more sockets": max(0, descriptors["socket"] - num_sockets),
    }


def answer_of(server: RunningServer) -> str:
    """Ask the question whose answer must never change."""
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, timeout=ANSWER_SECONDS)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def bodies(draw: random.Random) -> list[dict[str, object]]:
    """Return requests for every stage: long and short prompts, long answers, more than run at once."""
    lengths = [draw.randrange(10, 90) * (8 if index % 2 else 1) for index in range(6)]
    return [
        {
            "prompt": [draw.randrange(200, 400) for _ in range(length)],
            # As long as can be, so that the signal comes first.
            "max_tokens": CONTEXT_TOKENS - length,
            "ignore_eos": True,
            "stream": index % 3 != 2,
        }
        for index, length in enumerate(lengths)
    ]


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def end_engine(server: RunningServer, number: signal.Signals, draw: random.Random, load_seconds: float) -> End:
    """Send the engine a signal at a random moment under load, and see what comes of it."""
    bars, health = BARS[number], Health(server.url)
    health.start()
    clients = [Client(server.url, body) for body in bodies(draw)]
    for client in clients:
        client.start()
    after_seconds = draw.uniform(0.0, 0.6)
    time.sleep(after_seconds)
    pid = engine_of(server)
    assert pid is not None
    os.kill(pid, number)
    signalled = time.monotonic()
    most_seconds = bars.serving_seconds + load_seconds + ANSWER_SECONDS
    until(lambda: health.first(False, signalled) is not None, most_seconds)
    lost = health.first(False, signalled) or signalled + most_seconds
    until(lambda: health.first(True, lost) is not None, most_seconds)
    serving = health.first(True, lost) or signalled + most_seconds
    health.stop()
    for client in clients:
        client.join(ANSWER_SECONDS)
    cut = [client.outcome for client in clients if client.outcome.code is not None]
    end = End(
        signal=number.name,
        after_seconds=round(after_seconds, 3),
        not_ready_seconds=round(lost - signalled, 3),
        ended_seconds=round(max((one.monotonic_seconds for one in cut), default=signalled) - signalled, 3),
        serving_seconds=round(serving - signalled, 3),
        codes=dict(Counter(str(client.outcome.code) for client in clients)),
    )
    end.problems = list(problems_of(end, bars, load_seconds))
    return end


def problems_of(end: End, bars: Bars, load_seconds: float) -> Sequence[str]:
    """Return which bars an end has missed."""
    found = []
    for name, seconds, most in (
        ("not ready", end.not_ready_seconds, bars.not_ready_seconds),
        ("requests ended", end.ended_seconds, bars.ended_seconds),
        ("serving again", end.serving_seconds, bars.serving_seconds + load_seconds),
    ):
        if seconds > most:
            found.append(f"{name} only after {seconds:.1f} s, at most {most:.1f} s are allowed")
    # None: it was through before the signal came.
    if strange := set(end.codes) - {"engine_unavailable", "None"}:
        found.append(f"requests ended as {', '.join(sorted(strange))}")
    return found


def end_many(
    server: RunningServer, directory: Path, signals: Sequence[signal.Signals], *, seed: int, load_seconds: float
) -> list[End]:
    """Send signals one after the other; each must leave the server as it was."""
    draw, ends = random.Random(seed), list[End]()
    expected = answer_of(server)
    wait_until_idle(server.url)
    num_sockets = num_open(server)["socket"]
    before = left_behind(server, directory, num_sockets)
    for number in signals:
        end = end_engine(server, number, draw, load_seconds)
        ends.append(end)
        if (answer := answer_of(server)) != expected:
            end.problems.append(f"the answer changed to {answer!r}")
        wait_until_idle(server.url)
        # Closed connections are gone a moment after their clients.
        if not until(lambda: left_behind(server, directory, num_sockets) == before, 5.0):
            end.problems.append(f"left {left_behind(server, directory, num_sockets)}, before it was {before}")
        told = f"{end.signal} after {end.after_seconds:.2f} s: not ready {end.not_ready_seconds:.2f} s, "
        told += f"ended {end.ended_seconds:.2f} s, serving {end.serving_seconds:.2f} s, {end.codes}"
        print("; ".join([told, *end.problems]), file=sys.stderr, flush=True)
    return ends


def serve_and_end(model: str, signals: Sequence[signal.Signals], seed: int) -> tuple[float, list[End], list[str]]:
    """Serve, send the signals, and stop; return the load's time, what came of each, and everything that was wrong."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        directory, begin = Path(name), time.monotonic()
        settings = (*SETTINGS, "--spill-dir", str(directory / "spill"), "--no-cache")
        with running_server(model, *settings, environment={**os.environ, "TMPDIR": name}) as server:
            load_seconds = time.monotonic() - begin
            ends = end_many(server, directory, signals, seed=seed, load_seconds=load_seconds)
        left = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    problems = [problem for end in ends for problem in end.problems]
    if server.process.returncode != 0 or set(left) - {"spill"}:
        problems.append(f"the server ended with {server.process.returncode} and left {left}")
    return load_seconds, ends, problems


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "most": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    signals = [signal.SIGKILL] * arguments.kills + [signal.SIGSTOP] * arguments.stops
    random.Random(arguments.seed).shuffle(signals)
    load_seconds, ends, problems = serve_and_end(arguments.model, signals, arguments.seed)
    receipt = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.processor() or platform.machine(),
        "load_seconds": round(load_seconds, 2),
        "summary": {
            number.name: {
                "num": sum(end.signal == number.name for end in ends),
                **{
                    name: percentiles([getattr(end, name) for end in ends if end.signal == number.name])
                    for name in ("not_ready_seconds", "ended_seconds", "serving_seconds")
                },
            }
            for number in BARS
            if any(end.signal == number.name for end in ends)
        },
        "codes": dict(sum((Counter(end.codes) for end in ends), Counter())),
        "problems": problems,
        "ends": [asdict(end) for end in ends],
    }
    text = json.dumps(receipt, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    print(json.dumps({name: value for name, value in receipt.items() if name != "ends"}, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
