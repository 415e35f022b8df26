"""Model references: one pattern, and no text that climbs out of a directory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from openautoglm.checkpoint.hub import parse_reference, resolve, resolve_config
from openautoglm.checkpoint.reference import ModelReference
from openautoglm.errors import CheckpointFormatError, HubError
from openautoglm.spec.formats import NumberFormat

GOOD = {
    "THUDM/glm-edge-1.5b-chat": ModelReference(repository="THUDM/glm-edge-1.5b-chat"),
    "a/b": ModelReference(repository="a/b"),
    "org/name:int4": ModelReference(repository="org/name", quant=NumberFormat.INT4),
    "org/name:auto": ModelReference(repository="org/name"),
    "org/name@v1.0": ModelReference(repository="org/name", revision="v1.0"),
    "org/name:bf16@refs/pr/1": ModelReference(repository="org/name", quant=NumberFormat.BF16, revision="refs/pr/1"),
    "org/name@" + "a" * 40: ModelReference(repository="org/name", revision="a" * 40),
    "demo": ModelReference(demo=True),
    "demo:int8": ModelReference(demo=True, quant=NumberFormat.INT8),
    "/models/x:nf4": ModelReference(path=Path("/models/x"), quant=NumberFormat.NF4),
    "./x": ModelReference(path=Path("x")),
    "../x": ModelReference(path=Path("../x")),
}


@pytest.mark.parametrize("text", GOOD)
def test_good_references(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parsed = parse_reference(text)
    assert parsed == GOOD[text]
    assert parse_reference(str(parsed)) == parsed


def test_a_directory_wins_over_the_hub_and_not_over_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "demo", "odd:int4"):
        (tmp_path / name).mkdir(parents=True)
    assert parse_reference("org/name").path == Path("org/name")
    assert parse_reference("org/name:int8") == ModelReference(path=Path("org/name"), quant=NumberFormat.INT8)
    assert parse_reference("org/name@main").repository == "org/name"
    assert parse_reference("odd:int4") == ModelReference(path=Path("odd:int4"))
    assert parse_reference("demo").demo
    assert parse_reference("./demo").path == Path("demo")
    assert resolve("org/name") == Path("org/name")


def test_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("~/model").path == tmp_path / "model"


CLIMBS = (
    "..", "../..", "..%2f..", "%2e%2e/x", "..\\..", "....//", "..;/", "\u2025/x", "..\u2215x", "..%c0%afx",
    "\uff0e\uff0e/x", "x/../y", "x/./y", "x//y", "/x", "//x", ".", ".git", "x/.git", "-x", "x\n", "x\r\ny", "x y",
    "$HOME", "`id`", "$(id)", "x;id", "x|id", "C:\\x", "file:///etc/passwd", "http://169.254.169.254/x",
)  # fmt: skip
PAYLOADS = sorted({
    *CLIMBS,
    *(template.format(climb) for climb, template in itertools.product(
        CLIMBS, ("org/{}", "{}/name", "org/name@{}", "org/name:{}", "org/name:int4@{}", "models--org--name/{}")
    )),
    "", "\0", "org/name\0", "org", "org/name/", "a/b/c", "org/name:int5", "org/name:INT4", "org/name:", "org/name@",
    "org/name@@x", "org/name:int4:int8", "org/name@x:int4", "org/na--me", "org/name.git", "org/name@x.lock",
    "org/name@x.", "org/name.", "org/name-", "\u0000org/name", "org/\u540d", "org/" + "n" * 97, "x" * 5000,
    "org/name@" + "r" * 129, "datasets/org/name", "hf://org/name", "org/name?x=1", "org/name#x", "org@x/name",
    "ORG/NAME\u200b", "org/name ", " org/name", "org/name\t",
})  # fmt: skip


def test_there_are_two_hundred_payloads():
    assert len(PAYLOADS) >= 200


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_no_payload_becomes_a_hub_reference(payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is refused, or it is a path as the user typed it (a path's own business), which does not exist here."""
    empty = tmp_path / "one" / "two" / "three"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    try:
        parsed = parse_reference(payload)
    except HubError:
        return
    assert parsed.repository is None
    assert not parsed.demo
    assert payload.startswith((".", "/", "~"))


def test_a_refusal_is_printable():
    with pytest.raises(HubError) as caught:
        parse_reference("org/\x1b[2J\u202e..\n")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_resolve_of_what_is_no_directory(tmp_path: Path):
    with pytest.raises(HubError, match="not a directory"):
        resolve(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match="not a directory"):
        resolve(str(tmp_path / "file"))


def test_resolve_config_of_local_things(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "glm"}')
    assert resolve_config(str(tmp_path / "config.json")) == ({"model_type": "glm"}, None)
    assert resolve_config(str(tmp_path)) == ({"model_type": "glm"}, None)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointFormatError):
        resolve_config(str(tmp_path))
    with pytest.raises(CheckpointFormatError, match="no such file"):
        resolve_config(str(tmp_path / "absent.json"))


def test_the_demo_model_resolves():
    directory = resolve("demo:int8")
    config, tensors = resolve_config("demo")
    assert (directory / "config.json").is_file()
    assert config["model_type"] == "glm"
    assert tensors is not None
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
