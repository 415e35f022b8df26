"""The file of keys, and the command that changes it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openautoglm.errors import ConfigError
from openautoglm.serve.keys import MAX_KEYS, KeyRecord, Role, change_keys, key_digest, new_key, read_keys

DIGEST = "ab" * 32


def keys(*arguments: str, file: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if file is None else {"OPENAUTOGLM_KEYS_FILE": str(file)})}
    done = subprocess.run(
        [sys.executable, "-m", "openautoglm", "keys", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys(
        "create", "alice", "--role", "user", "--role", "metrics", "--expires-days", "2", file=file
    ).stdout.strip()
    other = keys("create", "bob", "--keys-file", str(file), "--tenant", "team").stdout.strip()
    assert re.fullmatch(r"oag-[A-Za-z0-9_-]{43}", key)
    assert len(base64.urlsafe_b64decode(key.removeprefix("oag-") + "=")) == 32
    assert key != other
    text = file.read_text()
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = json.loads(keys("list", "--json", file=file).stdout)
    assert listed["schema_version"] == 1
    alice, bob = listed["keys"]
    assert (alice["name"], alice["roles"], bob["tenant"]) == ("alice", ["user", "metrics"], "team")
    assert alice["expires"] - alice["created"] == 2 * 24 * 3600
    table = keys("list", file=file).stdout
    assert "alice" in table
    assert not {"sha256", DIGEST, hashlib.sha256(key.encode()).hexdigest()} & set(table.split())
    keys("revoke", "alice", file=file)
    assert [record.name for record in read_keys(file)] == ["bob"]
    # Nothing else is left beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "alice"], 2, "--keys-file"),
        (["create", "alice", "--keys-file", "FILE", "--role", "root"], 2, "root"),
        (["create", "a b", "--keys-file", "FILE"], 2, "'a b'"),
        (["create", "../x", "--keys-file", "FILE"], 2, "'../x'"),
        (["create", "x", "--keys-file", "FILE", "--tenant", "\n"], 2, "tenant"),
        (["create", "x", "--keys-file", "FILE", "--expires-days", "0"], 2, "0"),
        (["create", "x", "--keys-file", "FILE", "--kv-memory", "much"], 2, "--kv-memory"),
        (["create", "x", "--keys-file", "FILE", "--kv-memory", "0"], 2, "--kv-memory"),
        (["create", "x", "--keys-file", "FILE", "--requests-per-minute", "0"], 2, "--requests-per-minute"),
        (["create", "x", "--keys-file", "MISSING/keys.json"], 1, "MISSING"),
        (["list", "--keys-file", "FILE"], 2, "No such file"),
        (["revoke", "x", "--keys-file", "FILE"], 2, "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_of_the_command(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    file = tmp_path / "keys.json"
    done = keys(*(str(file) if argument == "FILE" else argument for argument in arguments), code=code)
    assert words in done.stderr
    assert not file.exists()


def test_limits_are_kept_and_listed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys(
        "create", "a", "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--max-requests", "4",
        "--kv-memory", "512MiB", file=file,
    )  # fmt: skip
    assert json.loads(keys("list", "--json", file=file).stdout)["keys"][0]["limits"] == {
        "requests_per_minute": 60, "tokens_per_minute": 9000, "max_requests": 4, "kv_bytes": 512 << 20,
    }  # fmt: skip
    assert "60 requests/min, 9000 tokens/min, 4 at once, 512 MiB KV" in keys("list", file=file).stdout


def test_names_are_not_taken_twice_and_unknown_ones_not_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys("create", "alice", file=file)
    before = file.read_bytes()
    assert "already" in keys("create", "alice", file=file, code=2).stderr
    assert "no key called bob" in keys("revoke", "bob", file=file, code=2).stderr
    assert file.read_bytes() == before


def record(name: str = "a", **fields: object) -> dict[str, object]:
    return {"name": name, "roles": ["user"], "sha256": hashlib.sha256(name.encode()).hexdigest(), "created": 0} | fields


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "malformed"),
        ("[]", "malformed"),
        ({"version": 2, "keys": []}, "version 2"),
        ({"version": 1, "keys": [], "more": 1}, "more"),
        ({"version": 1, "keys": [record(password="x")]}, "password"),
        ({"version": 1, "keys": [record(roles=["root"])]}, "root"),
        ({"version": 1, "keys": [record(roles=[])]}, "no role"),
        ({"version": 1, "keys": [record(sha256="x" * 64)]}, "64 hexadecimal digits"),
        ({"version": 1, "keys": [record(sha256=DIGEST.upper())]}, "64 hexadecimal digits"),
        ({"version": 1, "keys": [record(name="a\nb")]}, "name"),
        ({"version": 1, "keys": [record(limits={"requests_per_minute": 0})]}, ">= 1"),
        ({"version": 1, "keys": [record(limits={"requests_per_hour": 5})]}, "requests_per_hour"),
        ({"version": 1, "keys": [record(), record(sha256=DIGEST)]}, "two keys have the name a"),
        ({"version": 1, "keys": [record("a", sha256=DIGEST), record("b", sha256=DIGEST)]}, "two keys have the digest"),
        ({"version": 1, "keys": [record(f"k{index}") for index in range(MAX_KEYS + 1)]}, "revoke some"),
        ('{"version":1,"keys":[' + " " * (1 << 20) + "]}", "larger than"),
        ("[" * 500_000, "malformed"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(tmp_path: Path, content: object, words: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        read_keys(file)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"version": 1, "keys": []}))
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(file)
    file.chmod(0o644)
    assert read_keys(file) == ()


def test_of_many_that_change_it_at_once_none_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def add(index: int) -> None:
        made = KeyRecord(name=f"k{index}", roles=(Role.USER,), sha256=key_digest(new_key()).hex(), created=0)
        change_keys(file, lambda known: (*known, made))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert {key.name for key in read_keys(file)} == {f"k{index}" for index in range(40)}


def test_a_change_that_fails_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    change_keys(file, lambda _: (KeyRecord(name="a", roles=(Role.USER,), sha256=DIGEST, created=0),))
    before = file.read_bytes()
    with pytest.raises(ConfigError):
        change_keys(file, lambda known: (*known, *known))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "real" / "keys.json")
    change_keys(link, lambda _: (KeyRecord(name="a", roles=(Role.USER,), sha256=DIGEST, created=0),))
    assert link.is_symlink()
    assert [key.name for key in read_keys(link)] == ["a"]
