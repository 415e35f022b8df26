"""Where packed weights go: flags, environment and settings files, as every command that loads a model hears them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.checkpoint.packed_files import make_cache, make_layout, write

from openautoglm.cli.load_options import load_options
from openautoglm.cli.main import cli
from openautoglm.settings import command_defaults, resolve_settings
from openautoglm.units import format_bytes


@click.command("run")
@load_options
def show(cache: str | None, strict: bool) -> None:
    click.echo(f"cache {cache}" + (", strict" if strict else ""))


def shown(*arguments: str, environment: dict[str, str] | None = None, directory: Path) -> str:
    settings = resolve_settings(environment={"HOME": "/nowhere", **(environment or {})}, directory=directory)
    done = CliRunner().invoke(show, arguments, default_map=command_defaults(settings, ("run",))["run"])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_flags_beat_the_environment_and_that_the_file(tmp_path: Path) -> None:
    assert shown(directory=tmp_path) == "cache None"
    (tmp_path / "openautoglm.toml").write_text('cache = "/from/file"\n')
    assert shown(directory=tmp_path) == "cache /from/file"
    environment = {"OPENAUTOGLM_CACHE": "/from/environment"}
    assert shown(directory=tmp_path, environment=environment) == "cache /from/environment"
    assert shown("--cache", "/from/flag", directory=tmp_path, environment=environment) == "cache /from/flag"
    assert shown("--no-cache", directory=tmp_path, environment=environment) == "cache off"


def test_strict_is_a_flag_a_variable_and_a_key(tmp_path: Path) -> None:
    assert shown("--strict", directory=tmp_path) == "cache None, strict"
    assert shown(directory=tmp_path, environment={"OPENAUTOGLM_STRICT": "true"}) == "cache None, strict"
    (tmp_path / "openautoglm.toml").write_text("strict = true\n")
    assert shown(directory=tmp_path) == "cache None, strict"
    assert shown(directory=tmp_path, environment={"OPENAUTOGLM_STRICT": "False"}) == "cache None"


@pytest.mark.parametrize("command", ["run", "serve"])
def test_the_commands_that_load_have_the_options(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert "--no-cache" in done.output
    assert "--cache" in done.output
    assert "--strict" in done.output


def test_ls_tells_the_size_of_the_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    write(cache, make_layout())
    environment = {"OPENAUTOGLM_CACHE": str(cache.directory), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = CliRunner().invoke(cli, ["ls"], env=environment)
    assert done.exit_code == 0, done.output
    assert f"packed weights of 1 load: {format_bytes(make_layout().file_bytes)} in {cache.directory}" in done.output
    empty = CliRunner().invoke(cli, ["ls"], env={**environment, "OPENAUTOGLM_CACHE": "off"})
    assert empty.exit_code == 0, empty.output
    assert "packed" not in empty.output
