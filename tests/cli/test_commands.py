"""The command line as a user types it: real processes, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import openautoglm.demo

DEMO = Path(openautoglm.demo.__file__).parent
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
        (["run", "/nonexistent/model", "x"], 1, "/nonexistent/model"),
        (["run", "demo", "x", "--quant", "int3"], 2, "int3"),
        (["run", "demo", "x", "--memory", "many"], 2, "4GiB"),
        (["run", "demo", "x", "--temperature", "nan"], 2, "temperature"),
        (["run", "demo", "x\udcff"], 2, "UTF-8"),
        (["run", "demo", ""], 2, "empty"),
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


def test_wrong_sampling_is_said_before_the_load():
    done = run("run", "demo", "x", "--top-p", "3")
    assert "plan for" not in done.stderr
    assert "top_p must be a number in [1e-06, 1]" in done.stderr


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "prompt is empty"), (b"\n", "prompt is empty"), (b"ab\xff", "byte 0xff at offset 2")]
)
def test_standard_input_that_is_no_prompt(data: bytes, words: str):
    done = subprocess.run([*COMMAND, "run", "demo"], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr.decode()


def test_a_chat_drops_the_newline_of_echo():
    arguments = ("--max-tokens", "8", "--temperature", "0", "--quiet", *SMALL)
    assert run("run", "demo", *arguments, input="Hello\n").stdout == run("run", "demo", "Hello", *arguments).stdout


def test_a_reader_that_leaves_is_no_error():
    script = '"$@" | head -1; exit ${PIPESTATUS[0]}'
    # Printed at once, and longer than a pipe holds; head leaves after the first line.
    arguments = ["run", "demo", "import os\n", "--raw", "--quiet", "--max-tokens", "240", "--temperature", "0", *SMALL]
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert not done.stderr


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*COMMAND, "plan", "demo"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["run"], ["serve", "--port", "0"]], ids=lambda value: value[0])
def test_what_cannot_run_is_named_before_its_memory(command: list[str], tmp_path: Path):
    """Nobody should buy memory for a model that cannot run."""
    fixtures = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fixtures["GLM-4.5-Air"]["config"]))
    name, *options = command
    done = run(name, str(tmp_path), *options, "--memory", "1GiB", input="hi")
    assert done.returncode == 1, done.stderr
    assert "can be planned but not run yet: mixture of experts" in done.stderr
    assert "nearest plans" not in done.stderr
    assert run("plan", str(tmp_path), "--memory", "1GiB").returncode == 3


def test_a_model_without_a_template_is_refused_before_the_load(tmp_path: Path):
    for file in DEMO.iterdir():
        if file.suffix in {".json", ".safetensors"} and file.name != "tokenizer_config.json":
            (tmp_path / file.name).symlink_to(file)
    done = run("run", str(tmp_path), "hi", *SMALL)
    assert done.returncode == 1
    assert "no chat template" in done.stderr
    assert "--raw" in done.stderr
    assert "receipt" not in done.stderr
    assert run("run", str(tmp_path), "hi", "--raw", "--max-tokens", "4", *SMALL).returncode == 0


def test_doctor_reports_a_bad_model_beside_the_rest(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    done = run("doctor", str(tmp_path), "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["model"]["status"] == "problem"
    assert "not JSON" in findings["model"]["found"]
    assert "processor" in findings


@pytest.mark.parametrize("arguments", [["plan", "demo"], ["doctor"], ["ls"], ["config", "show"]], ids=" ".join)
def test_json_is_data_on_stdout(arguments: list[str]):
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema_version"] == 1


def test_the_cache_format_is_an_option_and_a_setting(monkeypatch: pytest.MonkeyPatch):
    plans = []
    for arguments, variable in (([], ""), (["--kv", "int8"], "fp8"), ([], "fp8"), (["--kv", "auto"], "fp8")):
        if variable:
            monkeypatch.setenv("OPENAUTOGLM_KV", variable)
        done = run("plan", "demo", *SMALL, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(done.stdout))
    assert [plan["formats"]["kv"] for plan in plans] == ["bf16", "int8", "fp8", "bf16"]
    assert plans[1]["breakdown"]["kv_bytes"] == plans[2]["breakdown"]["kv_bytes"] < plans[0]["breakdown"]["kv_bytes"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str):
    done = run("completion", shell)
    assert done.returncode == 0
    assert "openautoglm" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("openautoglm ser", "serve"),
        ("openautoglm run --qu", "--quant --quiet"),
        ("openautoglm run demo --quant i", "int8 int4"),
        ("openautoglm serve de", "demo"),
        ("openautoglm plan mod", "models/"),
    ],
)
def test_bash_completes(words: str, expected: str, tmp_path: Path):
    """The script as bash runs it, up to the directories that bash itself adds."""
    program = tmp_path / "openautoglm"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.argv[0] = "openautoglm"; '
        'from openautoglm.cli.main import main; main()\' "$@"\n'
    )
    program.chmod(0o755)
    script = (
        'eval "$(openautoglm completion bash)"; compopt() { COMPREPLY+=("$2"); }; COMP_WORDS=($1); '
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _openautoglm_completion openautoglm; echo "${COMPREPLY[*]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        ["bash", "-c", script, "bash", words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout.strip() == {"models/": "dirnames"}.get(expected, expected), done.stderr


def test_interrupt_ends_cleanly():
    arguments = ["run", "demo", "x", "--raw", "--max-tokens", "2000", "--seed", "3", *SMALL[:2], "--context", "2048"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


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
