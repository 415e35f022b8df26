"""The command line as a user types it: real processes, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "openautoglm"]
SMALL = ["--quant", "int8", "--context", "256", "--concurrency", "1"]


def run(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, **kwargs)


def test_run_prints_the_plan_then_the_answer():
    done = run("run", "demo", "def main():", "--raw", "--max-tokens", "16", "--temperature", "0", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    plan, receipt = done.stderr.index("headroom"), done.stderr.index("unaccounted")
    assert plan < receipt


def test_run_reads_standard_input():
    arguments = ("run", "demo", "--raw", "--max-tokens", "8", "--temperature", "0", "--quiet", *SMALL)
    piped = run(*arguments, input="def main():")
    given = run("run", "demo", "def main():", *arguments[2:])
    assert piped.returncode == given.returncode == 0
    assert piped.stdout == given.stdout
    assert not given.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run"], 2, "MODEL"),
        (["run", "/nonexistent/model"], 1, "/nonexistent/model"),
        (["run", "demo", "x", "--quant", "int3"], 2, "int3"),
        (["run", "demo", "x", "--memory", "many"], 2, "4GiB"),
        (["run", "demo", "x", "--temperature", "nan"], 1, "temperature"),
        (["run", "demo", "x", "--memory", "10MiB"], 3, "MiB"),
        (["plan", "demo", "--memory", "10MiB"], 3, "MiB"),
        (["chat", "demo"], 2, "chat"),
        (["completion", "tcsh"], 2, "tcsh"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_says_what_was_wrong(arguments: list[str], code: int, words: str):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["plan", "demo"], ["doctor"], ["ls"], ["config", "show"]], ids=" ".join)
def test_json_is_data_on_stdout(arguments: list[str]):
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str):
    done = run("completion", shell)
    assert done.returncode == 0
    assert "openautoglm" in done.stdout


def test_interrupt_ends_cleanly():
    arguments = ["run", "demo", "x", "--raw", "--max-tokens", "2000", "--seed", "3", *SMALL[:2], "--context", "2048"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_chat_in_a_terminal_remembers_the_conversation():
    master, slave = pty.openpty()
    arguments = ["run", "demo", "--temperature", "0", "--max-tokens", "8", "--quiet", *SMALL]
    process = subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    seen = read_until(master, "> ", 60)
    os.write(master, b"What does os.getcwd do?\n")
    seen = read_until(master, "\n> ", 60)
    assert len(seen.split("\n", 1)[1].strip()) > 1, seen
    os.write(master, b"/bye\n")
    assert process.wait(timeout=30) == 0
    os.close(master)


def read_until(master: int, mark: str, seconds: float) -> str:
    seen, deadline = "", time.monotonic() + seconds
    while mark not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"no {mark!r} in {seen!r}"
        if select.select([master], [], [], left)[0]:
            seen += os.read(master, 4096).decode()
    return seen


def test_settings_come_from_file_environment_and_flag(tmp_path: Path):
    (tmp_path / "openautoglm.toml").write_text('memory = "700MiB"\n')

    def budget(*arguments: str, **variables: str) -> int:
        done = run("plan", "demo", "--json", *arguments, cwd=tmp_path, env=os.environ | variables)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["budget_bytes"]) >> 20

    assert budget() == 700
    assert budget(OPENAUTOGLM_MEMORY="800MiB") == 800
    assert budget("--memory", "900MiB", OPENAUTOGLM_MEMORY="800MiB") == 900
    refused = run("plan", "demo", env=os.environ | {"OPENAUTOGLM_MEMROY": "1GiB"})
    assert refused.returncode == 2
    assert "OPENAUTOGLM_MEMROY" in refused.stderr
