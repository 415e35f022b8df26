"""`openautoglm top` as a user has it: beside a real server, in a real terminal, and where there is neither."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import httpx
import pytest

from openautoglm.cli.top_look import rates, read_metrics
from openautoglm.cli.top_view import LEAST_WIDTH, top_lines
from tests.serve.test_end_to_end import Server, running

COMMAND = [sys.executable, "-m", "openautoglm", "top"]
ENTER, LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    arguments = ("--api-key", "secret", "--admin-key", "adm", "--memory", "400MiB")
    with tempfile.TemporaryDirectory(prefix="oag-") as name, running(Path(name), *arguments) as started:
        yield started


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@dataclass
class Terminal:
    """A program in a terminal of its own."""

    process: subprocess.Popen[bytes]
    master: int
    before: list[object]
    output: bytes = b""

    def read_until(self, text: bytes, seconds: float = 30.0) -> bytes:
        """Read until `text` has come since the last call; return what came."""
        begin, end = len(self.output), time.monotonic() + seconds
        while text not in self.output[begin:]:
            assert time.monotonic() < end, self.output[begin:]
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.output += os.read(self.master, 65536)
                except OSError:  # what Linux says when the other side is closed
                    break
        return self.output[begin:]

    def end(self, seconds: float = 15.0) -> int:
        """Read on until the program ends; return its exit status."""
        with contextlib.suppress(AssertionError):
            self.read_until(b"nothing that ever comes", 0.3)
        status = self.process.wait(seconds)
        with contextlib.suppress(AssertionError):
            self.read_until(b"nothing that ever comes", 0.3)
        return status

    def assert_clean(self) -> None:
        """Fail unless the terminal is as it was found."""
        assert self.output.count(ENTER) == self.output.count(LEAVE) == 1
        assert self.output.rfind(LEAVE) > self.output.rfind(b"\x1b[H")
        assert termios.tcgetattr(self.master)[3] == self.before[3]


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 90, rows: int = 45, shell: tuple[str, ...] = ()) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(master)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*shell, *COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    shown = Terminal(process, master, before)
    try:
        yield shown
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


def at(server: Server) -> tuple[str, ...]:
    return ("--url", server.url, "--api-key", "secret")


def test_one_screen_shows_the_memory_map_and_the_ladder(server: Server) -> None:
    done = top(*at(server), "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "\x1b" not in text
    assert text.startswith(f"server    demo, ready, {server.url}\n")
    assert "budget    400 MiB" in text
    for rung in ("drop_prefix", "smaller_chunk", "stop_admission", "spill", "preempt", "refuse"):
        assert rung in text
    for part in ("weights", "KV pool", "workspace", "runtime", "headroom"):
        assert re.search(rf"^  . {part} +[0-9.]+ [KMG]iB", text, re.MULTILINE), part
    assert "budget, " in text
    assert "machine, " in text


def test_json_agrees_with_what_the_server_tells_its_operator(server: Server) -> None:
    look = json.loads(top(*at(server), "--json", "--interval", "0.1").stdout)
    told = httpx.get(f"{server.url}/admin/memory", headers={"Authorization": "Bearer adm"}, timeout=30).json()
    assert look["ledger_bytes"] == told["ledger"]
    assert look["budget_bytes"] == told["budget_bytes"] == 400 << 20
    assert look["kv_pool_blocks"]["now"] == told["pool_blocks"]
    assert look["kv_block_bytes"] == told["block_bytes"]
    assert look["rung"] == told["rung"] == "none"
    assert set(look["rooms"]) == {room["source"] for room in told["rooms"]}
    assert sum(look["kv_blocks"].values()) == told["pool_blocks"]
    assert look["ready"] is True


def test_speed_is_what_happened_in_between(server: Server) -> None:
    body = {"prompt": "def", "max_tokens": 200, "ignore_eos": True}
    done = threading.Event()

    def ask_on() -> None:
        while not done.is_set():
            httpx.post(
                f"{server.url}/v1/completions", json=body, headers={"Authorization": "Bearer secret"}, timeout=60
            ).raise_for_status()

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        look = json.loads(top(*at(server), "--json", "--interval", "0.5").stdout)
    finally:
        done.set()
        asking.join()
    assert look["per_second"]["generated_tokens"] > 1
    assert look["per_second"]["steps"] > 1
    assert look["requests"]["running"] + look["requests"]["waiting"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "127.0.0.1:8000"), "http://"),
        (("--interval", "0"), "--interval"),
        (("--url", "http://127.0.0.1:1"), "does not answer"),
    ],
)
def test_wrong_use_says_what_was_wrong(arguments: tuple[str, ...], words: str) -> None:
    done = top(*arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_is_needed_where_the_server_asks_for_one(server: Server) -> None:
    done = top("--url", server.url, "--once")
    assert done.returncode == 1
    assert "role metrics" in done.stderr
    assert top("--url", server.url, "--json", OPENAUTOGLM_API_KEY="secret").returncode == 0


class Impostor(BaseHTTPRequestHandler):
    """Another server."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>hello</html>", "metrics"),
        (b"", "no metrics of this package"),
        (b"up 1\n", "no metrics of this package"),
        (b"\xff\xfe\x00{{{", "metrics"),
        (b'x{y="', "metrics"),
    ],
)
def test_another_server_is_told_from_ours(body: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Impostor, "body", body)
    with HTTPServer(("127.0.0.1", 0), Impostor) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        done = top("--url", f"http://127.0.0.1:{other.server_port}", "--once")
        other.shutdown()
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["q", "ctrl-c", "terminated"])
def test_the_terminal_is_left_as_it_was(server: Server, how: str) -> None:
    with terminal(*at(server), "--interval", "0.2") as shown:
        first = shown.read_until(b"workspace")
        assert ENTER in first
        assert termios.tcgetattr(shown.master)[3] != shown.before[3]
        shown.read_until(b"workspace")
        if how == "q":
            os.write(shown.master, b"q")
        elif how == "ctrl-c":
            os.write(shown.master, b"\x03")
        else:
            shown.process.send_signal(signal.SIGTERM)
        assert shown.end() == (143 if how == "terminated" else 0)
        shown.assert_clean()
        assert b"Traceback" not in shown.output
        assert b"interrupted" not in shown.output


# What a shell does: a job of its own in the foreground, and the terminal back when it stops.
SHELL = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, job.pid)
assert os.WIFSTOPPED(os.waitpid(job.pid, os.WUNTRACED)[1])
os.tcsetpgrp(0, os.getpgrp())
print("the job has stopped", flush=True)
sys.stdin.readline()
os.tcsetpgrp(0, job.pid)
os.killpg(job.pid, signal.SIGCONT)
sys.exit(job.wait())
"""


def test_a_job_that_is_stopped_leaves_the_terminal_and_takes_it_again(server: Server) -> None:
    with terminal(*at(server), "--interval", "0.2", shell=(sys.executable, "-c", SHELL)) as shown:
        shown.read_until(b"workspace")
        os.write(shown.master, b"\x1a")
        stopping = shown.read_until(b"the job has stopped")
        assert stopping.count(LEAVE) == 1
        assert termios.tcgetattr(shown.master)[3] == shown.before[3]
        os.write(shown.master, b"\n")
        assert ENTER in shown.read_until(b"workspace")
        os.write(shown.master, b"q")
        assert shown.end() == 0
        assert termios.tcgetattr(shown.master)[3] == shown.before[3]
        assert shown.output.count(ENTER) == shown.output.count(LEAVE) == 2


def test_a_server_that_goes_ends_it_with_a_clear_word() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="oag-") as name,
        running(Path(name)) as server,
        terminal("--url", server.url, "--interval", "0.2") as shown,
    ):
        shown.read_until(b"workspace")
        server.process.terminate()
        assert shown.end(40) == 1
        shown.assert_clean()
        after = shown.output[shown.output.rfind(LEAVE) :].decode()
        assert server.url in after
        assert "does not answer" in after
        assert "Traceback" not in after


def test_a_small_window_shows_what_matters_most(server: Server) -> None:
    with terminal(*at(server), "--interval", "0.2", columns=30, rows=8) as shown:
        text = shown.read_until(b"more lines").decode()
        screen = text[text.rindex("\x1b[H") :].replace("\x1b[H", "").replace("\x1b[2K", "")
        lines = screen.split("\r\n")
        assert len(lines) <= 8
        assert all(len(line) <= 30 for line in lines), lines
        assert lines[0].startswith("server    demo")


SAMPLE = """\
openautoglm_engine_ready{model_name="m"} 1.0
openautoglm_ladder_rung{model_name="m"} 3.0
openautoglm_ladder_rung_transitions_total{model_name="m",rung="drop_prefix"} 2.0
openautoglm_ladder_rung_transitions_total{model_name="m",rung="stop_admission"} 1.0
openautoglm_memory_budget_bytes{model_name="m"} 1.0e+09
openautoglm_memory_tree_bytes{model_name="m"} 5.0e+08
openautoglm_memory_ledger_bytes{model_name="m",part="weights"} 5.0e+08
openautoglm_memory_ledger_bytes{model_name="m",part="KV pool"} 2.5e+08
openautoglm_memory_ledger_bytes{model_name="m",part="something new"} 1.0
openautoglm_memory_limit_bytes{model_name="m",source="/sys/fs/cgroup/\\x1b[31mred"} 1.0e+09
openautoglm_memory_left_bytes{model_name="m",source="/sys/fs/cgroup/\\x1b[31mred"} -5.0
openautoglm_kv_pool_blocks{model_name="m",size="now"} 10.0
openautoglm_kv_pool_blocks{model_name="m",size="target"} 7.0
openautoglm_kv_pool_blocks{model_name="m",size="planned"} 20.0
vllm:generation_tokens_total{model_name="m"} 100.0
vllm:e2e_request_latency_seconds_bucket{model_name="m",le="+Inf"} 3.0
"""


def test_a_tight_server_is_shown_as_it_is() -> None:
    text = SAMPLE.replace("\\x1b", "\x1b")
    lines = top_lines("http://x", read_metrics(text, 1.0), rates(read_metrics(text, 1.0), None), width=100)
    screen = "\n".join(lines)
    assert "\x1b" not in screen
    assert "ladder    stop_admission" in screen
    assert "  * drop_prefix             entered 2 times" in screen
    assert "  * smaller_chunk\n" in screen
    assert "  > stop_admission          entered 1 times" in screen
    assert "    spill\n" in screen
    bar = next(line for line in lines if line.startswith("[w"))
    assert (bar.count("w"), bar.count("k"), bar.count("+"), len(bar)) == (30, 15, 1, 62)
    assert "on its way to 7, of 10 blocks (20 planned)" in screen
    assert "tokens/s  - generated" in screen
    assert "-5 B left of" in screen


@pytest.mark.parametrize("width", [1, LEAST_WIDTH, 33, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    look = read_metrics(SAMPLE, 1.0)
    assert all(
        len(line) <= max(width, LEAST_WIDTH) for line in top_lines("http://x", look, rates(look, None), width=width)
    )


def test_an_engine_that_starts_anew_has_no_speed() -> None:
    before = read_metrics(SAMPLE, 1.0)
    assert rates(read_metrics(SAMPLE.replace(" 100.0", " 140.0"), 3.0), before)["generated_tokens"] == 20.0
    assert rates(read_metrics(SAMPLE.replace(" 100.0", " 4.0"), 3.0), before)["generated_tokens"] is None
    assert rates(read_metrics('openautoglm_engine_ready{model_name="m"} 0.0\n', 3.0), before)["steps"] is None


def test_an_engine_that_is_not_ready_is_told() -> None:
    look = read_metrics('openautoglm_engine_ready{model_name="m"} 0.0\n', 1.0)
    assert top_lines("http://x", look, rates(look, None), width=80) == [
        "server    m, not ready: the engine starts, or does not answer, http://x"
    ]
    with pytest.raises(click.ClickException, match="older"):
        read_metrics("process_open_fds 3\n", 1.0)
