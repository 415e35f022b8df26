"""Is a server as fast in its first request as later? Starts `openautoglm serve` many times and times requests in turn.

    PYTHONPATH=benchmarks python benchmarks/first_requests.py [--model demo] [--starts 12] [--requests 24]

Every request is a chat of its own (nothing of it is in the prefix cache) over a connection of its own, timed from the
connection to the first byte of the streamed answer's first token, and to its end. Before each, also the first, there is
the same pause: processors and threads that have just worked are faster than those that wait. The client is warm:
another server's requests were timed before. Prints, over all starts, the median of first requests, the median of those
after the eighth, and their ratio, which should be 1.1 at most.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from urllib.parse import urlsplit

MOST_RATIO = 1.1
STEADY_FROM = 8
PAUSE_SECONDS = 0.2


class Served:
    """A server, from its start until it is left."""

    def __init__(self, model: str, options: list[str]) -> None:
        command = [sys.executable, "-m", "openautoglm", "serve", model, "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        self.address = urlsplit(line.split(" at ")[1].strip())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def seconds_of(address: object, number: int, max_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token and to the end of one streamed chat that nobody sent before."""
    words = f"{number:06d} " * 3 + "Write a function that reverses the words of a line, and say how it works. " * 2
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": max_tokens, "stream": True, "seed": 1,
            "ignore_eos": True}  # fmt: skip
    time.sleep(PAUSE_SECONDS)
    begin = time.perf_counter()
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)  # type: ignore[attr-defined]
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(answer.read().decode())
    first = 0.0
    while line := answer.readline():
        if not first and b'"content":' in line:
            first = time.perf_counter() - begin
    connection.close()
    return first, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--starts", type=int, default=12)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--context", default="1024")
    arguments = parser.parse_args()
    firsts: list[tuple[float, float]] = []
    steady: list[tuple[float, float]] = []
    for start in range(arguments.starts + 1):
        server = Served(arguments.model, ["--context", arguments.context, "--concurrency", "4"])
        try:
            times = [
                seconds_of(server.address, start * arguments.requests + number, arguments.tokens)
                for number in range(arguments.requests)
            ]
        finally:
            server.close()
        if start:  # the first start warms the client
            firsts.append(times[0])
            steady.extend(times[STEADY_FROM:])
    for name, index in (("first token", 0), ("whole answer", 1)):
        first = statistics.median(one[index] for one in firsts)
        later = statistics.median(one[index] for one in steady)
        verdict = "held" if first <= MOST_RATIO * later else "MISSED"
        print(f"{name}: first request {first * 1e3:.2f} ms, later {later * 1e3:.2f} ms, ratio {first / later:.3f}: "
              f"at most {MOST_RATIO} {verdict}")  # fmt: skip


if __name__ == "__main__":
    main()
