"""Code that lies in a checkpoint is never run: not where config names it, and not where asserts are switched off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openautoglm.checkpoint.hub import resolve

POISON = "from pathlib import Path\nPath({sentinel!r}).write_text('was here')\n"


@pytest.fixture
def poisoned(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the demo model that carries code wherever somebody has once run some; and the file that it writes."""
    directory, sentinel = tmp_path / "model", tmp_path / "sentinel"
    shutil.copytree(resolve("demo"), directory)
    modules = (
        "modeling_x",
        "configuration_x",
        "tokenization_x",
        "sitecustomize",
        "usercustomize",
        "conftest",
        "numpy",
        "jinja2",
    )
    for module in modules:
        (directory / f"{module}.py").write_text(POISON.format(sentinel=str(sentinel)))
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "configuration_x.Config", "AutoModelForCausalLM": "modeling_x.Model",
            "AutoTokenizer": ["tokenization_x.Tokenizer", None],
        }  # fmt: skip
        (directory / name).write_text(json.dumps(content))
    return directory, sentinel


@pytest.mark.parametrize("flags", [[], ["-O"]])
def test_poisoned_checkpoints_run_nothing(poisoned: tuple[Path, Path], flags: list[str]) -> None:
    directory, sentinel = poisoned
    for arguments in (["plan", str(directory)], ["run", str(directory), "Hello", "--max-tokens", "1", "--no-cache"]):
        command = [sys.executable, *flags, "-P", "-m", "openautoglm", *arguments, "--context", "128"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        # Refused with a word about it or run without the code: either is fine.
        assert done.returncode in (0, 1, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert not sentinel.exists(), arguments
    # The poison works: whoever imports it is noticed.
    subprocess.run([sys.executable, str(directory / "modeling_x.py")], check=True, timeout=60)
    assert sentinel.exists()
