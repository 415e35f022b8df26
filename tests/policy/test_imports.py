"""Importing stays light: no PyTorch in the core, nothing heavy behind --help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY_FOR_HELP = {
    "fastapi", "huggingface_hub", "jinja2", "matplotlib", "numpy", "prometheus_client",
    "rich", "tokenizers", "torch", "transformers", "uvicorn",
}  # fmt: skip


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded_after("import openautoglm") & HEAVY_FOR_HELP


def test_help_imports_nothing_heavy():
    code = (
        "from openautoglm.cli.main import cli\n"
        "from click.testing import CliRunner\n"
        "result = CliRunner().invoke(cli, ['--help'])\n"
        "assert result.exit_code == 0 and 'serve' in result.output, result.output"
    )
    assert not loaded_after(code) & HEAVY_FOR_HELP


@pytest.mark.parametrize(
    "module", ["openautoglm.llm", "openautoglm.engine.worker", "openautoglm.serve.main", "openautoglm.bench"]
)
def test_the_core_runs_without_pytorch(module: str):
    assert not loaded_after(f"import {module}") & {"torch", "transformers"}


# What a start does not need: servers, hub and template engines, readers of files that are not there.
NOT_FOR_RUN = {
    "asyncio", "fastapi", "http.client", "huggingface_hub", "jinja2", "openautoglm.checkpoint.download",
    "openautoglm.checkpoint.remote", "openautoglm.families.mla", "openautoglm.families.moe", "prometheus_client",
    "rich", "ssl", "starlette", "tomllib", "torch", "transformers", "urllib.request", "uvicorn",
}  # fmt: skip


def test_a_run_imports_only_what_it_needs(tmp_path: Path):
    code = (
        "import sys\n"
        "from openautoglm.cli.main import cli\n"
        "cli.main(['run', 'demo', 'Hello', '--max-tokens', '1', '--context', '128', '--no-cache', '--quiet'],\n"
        "         standalone_mode=False)\n"
        "print('\\n', *sorted(sys.modules))"
    )
    # Away from the project's settings and the user's.
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert not set(done.stdout.splitlines()[-1].split()) & NOT_FOR_RUN
