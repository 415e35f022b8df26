"""Soaks a real server: mixed requests in rounds, some clients leaving, some requests bad; memory after each round.

    python benchmarks/soak.py --requests 20000 --output benchmarks/results/soak.json

After each round the server is left until it is idle, and the private memory of its processes is read. The server passes
when every request was answered or refused with a type, no block is left in use, no process was replaced, and memory
does not grow: the slope of a least-squares line through the rounds after the warm-up is no larger than its error
allows, or the growth is below what one round differs from the next.

On a shared machine `--client-prefix COMMAND` names what each round's clients are started with (such as nice, or what
waits for a turn); between rounds the server is idle.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from openautoglm.probe.process_memory import parse_fields, process_tree
from openautoglm.units import format_bytes
from overload.server import RunningServer, running_server, wait_until_idle

WARM_UP_SHARE = 0.25
# One-sided at one in a thousand: of a thousand soaks of a server without a leak, one fails by chance.
SIGNIFICANT_ERRORS = 3.1
SETTLE_SECONDS = 2.5  # idle processes give free memory back after a second or two


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Memory and blocks after so many requests; `private_bytes` are of each process, the server's first."""

    num_requests: int
    seconds: float
    processes: tuple[int, ...]
    private_bytes: tuple[int, ...]
    live_blocks: int
    cached_blocks: int

    @property
    def total_bytes(self) -> int:
        """Private memory of the process tree."""
        return sum(self.private_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A line through bytes over requests: slope, its standard error, and the scatter around the line."""

    bytes_per_request: float
    error_bytes_per_request: float
    growth_bytes: float
    noise_bytes: float

    @property
    def grows(self) -> bool:
        """Whether memory grew beyond noise: significantly, and by more than the rounds scatter."""
        significant = self.bytes_per_request > SIGNIFICANT_ERRORS * self.error_bytes_per_request
        return significant and self.growth_bytes > self.noise_bytes


def fit_growth(requests: Sequence[int], num_bytes: Sequence[int]) -> Growth:
    """Fit bytes = a + slope * requests by least squares; needs three points or more."""
    if len(requests) < 3:
        raise ValueError(f"a slope with an error needs 3 rounds or more, got {len(requests)}")
    slope, intercept = statistics.linear_regression(requests, num_bytes)
    residuals = [y - intercept - slope * x for x, y in zip(requests, num_bytes, strict=True)]
    mean = statistics.fmean(requests)
    variance = sum(residual**2 for residual in residuals) / (len(residuals) - 2)
    return Growth(
        bytes_per_request=slope,
        error_bytes_per_request=math.sqrt(variance / sum((x - mean) ** 2 for x in requests)),
        growth_bytes=slope * (requests[-1] - requests[0]),
        noise_bytes=max(residuals) - min(residuals),
    )


def private_bytes(process: int) -> int:
    """Return what only this process has: no library, no page that a relation shares."""
    fields = parse_fields(Path(f"/proc/{process}/smaps_rollup").read_text())
    return fields["Private_Clean"] + fields["Private_Dirty"]


def measure(server: RunningServer, num_requests: int, begin: float) -> Round:
    """Wait until the server is idle, and look."""
    metrics = wait_until_idle(server.url)
    time.sleep(SETTLE_SECONDS)
    processes = process_tree(server.process.pid)
    return Round(
        num_requests=num_requests,
        seconds=round(time.monotonic() - begin, 1),
        processes=processes,
        private_bytes=tuple(map(private_bytes, processes)),
        live_blocks=int(metrics["openautoglm_kv_blocks:used"]),
        cached_blocks=int(metrics["openautoglm_kv_blocks:cached"]),
    )


def run_clients(url: str, number: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Run the clients of one round in a process of their own; return their outcome."""
    command = [
        *shlex.split(arguments.client_prefix), sys.executable, "-m", "overload.clients", url,
        "--requests", str(arguments.round_requests), "--clients", str(arguments.clients), "--seed", str(number + 1),
        "--context", str(arguments.context), "--disconnect-share", str(arguments.disconnect_share),
        "--bad-share", str(arguments.bad_share),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    outcome: dict[str, object] = json.loads(done.stdout)
    return outcome


def soak(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all rounds; return the receipt."""
    statuses, refusals, faults = Counter[str](), Counter[str](), list[str]()
    rounds, begin = list[Round](), time.monotonic()
    settings = ["--context", str(arguments.context), "--concurrency", "4", "--max-running", "8", "--max-queued", "16",
                "--no-cache", "--memory", arguments.memory]  # fmt: skip
    with running_server(arguments.model, *settings) as server:
        for number in range(-(-arguments.requests // arguments.round_requests)):
            outcome = run_clients(server.url, number, arguments)
            statuses.update(outcome["statuses"])  # type: ignore[arg-type]
            refusals.update(outcome["refusals"])  # type: ignore[arg-type]
            faults.extend(outcome["faults"])  # type: ignore[arg-type]
            rounds.append(measure(server, (number + 1) * arguments.round_requests, begin))
            last = rounds[-1]
            print(
                f"{last.num_requests:6} requests, {last.seconds:6.0f} s: private {format_bytes(last.total_bytes)}, "
                f"blocks in use {last.live_blocks}, cached {last.cached_blocks}, faults {len(faults)}",
                flush=True,
            )
        alive, log = server.process.poll() is None, list(server.log)
    return receipt(arguments, rounds, statuses, refusals, faults, alive=alive, log=log)


def receipt(
    arguments: argparse.Namespace,
    rounds: list[Round],
    statuses: Counter[str],
    refusals: Counter[str],
    faults: list[str],
    *,
    alive: bool,
    log: list[str],
) -> dict[str, object]:
    """Judge the rounds; return all that was seen, with `passed`."""
    kept = rounds[int(len(rounds) * WARM_UP_SHARE) :]
    growth = fit_growth([one.num_requests for one in kept], [one.total_bytes for one in kept])
    leaked = max(one.live_blocks for one in rounds)
    same = all(one.processes == rounds[0].processes for one in rounds)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "model": arguments.model,
        "memory": arguments.memory,
        "num_requests": rounds[-1].num_requests,
        "disconnect_share": arguments.disconnect_share,
        "bad_share": arguments.bad_share,
        "seconds": rounds[-1].seconds,
        "statuses": dict(sorted(statuses.items())),
        "refusals": dict(sorted(refusals.items())),
        "faults": faults[:20],
        "num_faults": len(faults),
        "leaked_blocks": leaked,
        "same_processes": same,
        "growth": asdict(growth) | {"grows": growth.grows},
        "warnings": log[-20:],
        "passed": alive and same and not faults and leaked == 0 and not growth.grows,
        "rounds": [asdict(one) for one in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--round-requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--disconnect-share", type=float, default=0.1)
    parser.add_argument("--bad-share", type=float, default=0.05)
    parser.add_argument("--client-prefix", default="", help="command that each round's clients are started with")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    done = soak(arguments)
    growth = done["growth"]
    print(json.dumps({key: value for key, value in done.items() if key not in ("rounds", "warnings")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(done, indent=1) + "\n")
    if not done["passed"]:
        raise SystemExit(f"the soak failed: {growth}, faults {done['faults']}")


if __name__ == "__main__":
    main()
