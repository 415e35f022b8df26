"""Precedence of settings, their sources, and refusal of what is unknown."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from openautoglm.cli.config import config_command
from openautoglm.errors import ConfigError
from openautoglm.settings import command_defaults, resolve_settings, user_file


@pytest.fixture
def places(tmp_path):
    """A project directory and an environment whose user file is in place."""
    project, home = tmp_path / "project", tmp_path / "home"
    (home / "openautoglm").mkdir(parents=True)
    project.mkdir()
    return project, home / "openautoglm" / "config.toml", {"XDG_CONFIG_HOME": str(home)}


def one(name, settings):
    return next(setting for setting in settings if setting.name == name)


def test_each_source_beats_the_one_below(places):
    project, user, environment = places

    def quant(flags=None):
        setting = one("quant", resolve_settings(flags, environment=environment, directory=project))
        return setting.value, setting.source

    assert quant() == ("auto", "default")
    user.write_text('quant = "bf16"\n')
    assert quant() == ("bf16", str(user))
    (project / "openautoglm.toml").write_text('quant = "int8"\n')
    assert quant() == ("int8", str(project / "openautoglm.toml"))
    environment["OPENAUTOGLM_QUANT"] = "int4"
    assert quant() == ("int4", "OPENAUTOGLM_QUANT")
    assert quant({"quant": "nf4"}) == ("nf4", "flag")
    assert quant({"quant": None}) == ("int4", "OPENAUTOGLM_QUANT")


def test_values_take_their_types_from_any_source(places):
    project, _, environment = places
    environment["OPENAUTOGLM_CONTEXT"] = "4096"
    (project / "openautoglm.toml").write_text('port = 9000\nmemory = "3GiB"\n')
    settings = resolve_settings(environment=environment, directory=project)
    assert one("context", settings).value == 4096
    assert one("port", settings).value == 9000
    assert one("memory", settings).value == "3GiB"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quantt = 'int8'\n", ["unknown setting", "quantt", "openautoglm.toml"]),
        ("[server]\nport = 1\n", ["unknown setting", "server"]),
        ("port = 70000\n", ["port", "65535"]),
        ("port = true\n", ["port", "whole number"]),
        ("port = 1.5\n", ["port"]),
        ("memory = 'lots'\n", ["memory", "4GiB"]),
        ("memory = '0GiB'\n", ["memory", "above zero"]),
        ("quant = 'int3'\n", ["quant", "int4"]),
        ("group = 48\n", ["group", "64"]),
        ("host = ''\n", ["host", "empty"]),
        ("not toml", ["not TOML"]),
    ],
)
def test_bad_files_are_refused_by_name(places, text, words):
    project, _, environment = places
    (project / "openautoglm.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve_settings(environment=environment, directory=project)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("variable", ["OPENAUTOGLM_MEMRY", "OPENAUTOGLM_memory", "OPENAUTOGLM_"])
def test_unknown_variables_are_refused(places, variable):
    project, _, environment = places
    with pytest.raises(ConfigError, match=variable):
        resolve_settings(environment={**environment, variable: "1GiB"}, directory=project)


def test_variables_that_are_no_settings_pass(places):
    project, _, environment = places
    resolve_settings(environment={**environment, "OPENAUTOGLM_ISA": "avx2"}, directory=project)


def test_the_users_file_can_be_elsewhere(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("threads = 3\n")
    environment = {"OPENAUTOGLM_CONFIG": str(file)}
    assert user_file(environment) == file
    assert one("threads", resolve_settings(environment=environment, directory=tmp_path)).value == 3


def test_only_what_somebody_set_becomes_a_commands_default(places):
    project, _, environment = places
    environment["OPENAUTOGLM_MEMORY"] = "2GiB"
    settings = resolve_settings(environment=environment, directory=project)
    assert command_defaults(settings, ("plan", "run")) == {"plan": {"memory": "2GiB"}, "run": {"memory": "2GiB"}}


def test_config_show(places, monkeypatch):
    project, user, environment = places
    user.write_text('quant = "int8"\n')
    monkeypatch.chdir(project)
    for variable in environment:
        monkeypatch.setenv(variable, environment[variable])
    monkeypatch.setenv("OPENAUTOGLM_API_KEY", "very-secret-value")
    text = CliRunner().invoke(config_command, ["show"], catch_exceptions=False).output
    assert "very-secret-value" not in text
    assert any(line.split()[:3] == ["quant", "int8", str(user)] for line in text.splitlines())
    answer = json.loads(CliRunner().invoke(config_command, ["show", "--json"], catch_exceptions=False).output)
    assert answer["settings"]["quant"] == {"value": "int8", "source": str(user)}
    assert answer["settings"]["api_key"] == {"value": "(hidden)", "source": "OPENAUTOGLM_API_KEY"}


def test_commands_take_their_defaults_from_settings(tmp_path):
    (tmp_path / "openautoglm.toml").write_text('quant = "int4"\ncontext = 512\n')
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENAUTOGLM_")}

    def planned(*flags, **variables):
        command = [sys.executable, "-m", "openautoglm", "plan", "demo", "--json", *flags]
        environment = {**clean, "XDG_CONFIG_HOME": str(tmp_path / "none"), **variables}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    _, text, _ = planned()
    assert (json.loads(text)["formats"]["layers"], json.loads(text)["context_tokens"]) == ("int4-g64", 512)
    _, text, _ = planned("--context", "256", OPENAUTOGLM_QUANT="nf4")
    assert (json.loads(text)["formats"]["layers"], json.loads(text)["context_tokens"]) == ("nf4-g64", 256)
    code, _, errors = planned(OPENAUTOGLM_QUANTS="nf4")
    assert code == 2
    assert "OPENAUTOGLM_QUANTS" in errors
