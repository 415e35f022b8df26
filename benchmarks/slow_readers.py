"""How long a short chat takes alone, beside 64 clients that read their streams at once, and beside 64 that hardly do.

    python benchmarks/slow_readers.py --rounds 3 --seconds 6

The three are measured in turn on one server, so that what else the machine does meets all of them; quote the ratios.
Slow clients take a byte a second. Both kinds ask for the same long answers, 64 at once, and all of them run together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx

from overload.server import running_server, wait_until_idle

NUM_READERS = 64
CHAT = {"messages": [{"role": "user", "content": "What does textwrap.dedent do?"}], "max_tokens": 24, "temperature": 0}
SETTINGS = ("--threads", "1", "--max-running", "72", "--context", "1024", "--no-cache")
KINDS = ("alone", "fast", "slow")


def open_stream(host: str, port: int, index: int) -> socket.socket:
    """Ask for an answer of 900 tokens as a stream, with a receive buffer that holds little of it."""
    body = json.dumps({"prompt": [100 + index], "max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((host, port))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    connection.setblocking(False)
    return connection


def read(url: str, kind: str) -> None:
    """Be the readers, until standard input ends: the fast ones ask again when their answer is through."""
    host, _, port = url.removeprefix("http://").partition(":")
    selector = selectors.DefaultSelector()
    for index in range(NUM_READERS):
        selector.register(open_stream(host, int(port), index), selectors.EVENT_READ, index)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("reading", flush=True)
    while True:
        for key, _ in selector.select():
            if not isinstance(key.fileobj, socket.socket):
                return
            data = b""
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                data = key.fileobj.recv(1 if kind == "slow" else 65536)
            if not data or data.endswith(b"0\r\n\r\n"):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                selector.register(open_stream(host, int(port), key.data), selectors.EVENT_READ, key.data)
        if kind == "slow":
            time.sleep(1.0)


@contextlib.contextmanager
def readers(url: str, kind: str) -> Iterator[None]:
    if kind == "alone":
        yield
        return
    command = [sys.executable, __file__, "--read", url, "--kind", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "reading\n"
        yield
        process.stdin.close()


def chats(url: str, seconds: float) -> list[float]:
    """Chat again and again for so long; return what each took."""
    took, begin = [], time.monotonic()
    with httpx.Client(base_url=url, timeout=120) as client:
        while time.monotonic() - begin < seconds:
            asked = time.monotonic()
            client.post("/v1/chat/completions", json=CHAT).raise_for_status()
            took.append(time.monotonic() - asked)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--read", metavar="URL", help="be the readers of a server; the program starts itself so")
    parser.add_argument("--kind", choices=KINDS[1:])
    arguments = parser.parse_args()
    if arguments.read is not None:
        read(arguments.read, arguments.kind)
        return
    took: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="slow-") as name:
        environment = {**os.environ, "TMPDIR": name}
        with running_server(arguments.model, *SETTINGS, environment=environment) as server:
            chats(server.url, 1.0)
            for _ in range(arguments.rounds):
                for kind in KINDS:
                    with readers(server.url, kind):
                        took[kind].append(chats(server.url, arguments.seconds))
                    wait_until_idle(server.url)
    alone = statistics.median(second for seconds in took["alone"] for second in seconds)
    for kind in KINDS:
        every = sorted(second for seconds in took[kind] for second in seconds)
        middle = ", ".join(f"{statistics.median(seconds):.3f}" for seconds in took[kind])
        told = f"{kind:5}  {len(every):4} chats, median {statistics.median(every):.3f} s ({middle}), "
        told += f"most {every[-1]:.3f} s"
        print(f"{told}; {statistics.median(every) / alone:.1f} times as long as alone")


if __name__ == "__main__":
    main()
