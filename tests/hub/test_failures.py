"""Every way in which the hub, the network or the disk can fail: a typed error that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, Client, sharded_files
from tests.hub.stub_hub import StubFile, StubHub, StubRepository

SECOND_SHARD = "model-00002-of-00002.safetensors"
TEXT = StubFile(b"{}")


def _listing(sha: str, *siblings: dict[str, object]) -> bytes:
    return json.dumps({"id": NAME, "sha": sha, "siblings": siblings}).encode()


def _changed(**changes: StubFile | None) -> StubRepository:
    """The good model with files replaced, or removed where the change is None; names with _ for - and dots."""
    names = {name.replace("-", "_").replace(".", "_"): name for name in sharded_files()}
    files = sharded_files() | {names[key]: file for key, file in changes.items() if file is not None}
    gone = {names[key] for key, file in changes.items() if file is None}
    return StubRepository({name: file for name, file in files.items() if name not in gone})


STRANGE_HASH = {
    "rfilename": "model.safetensors",
    "size": 1,
    "blobId": "1",
    "lfs": {"sha256": "../evil", "size": 1, "pointerSize": 1},
}
HUGE = StubFile(b"", large=True, stated_size=1 << 60)
TRAVERSING = StubFile(json.dumps({"weight_map": {"a": "../../../../etc/passwd"}}).encode())
HUGE_SIZE = {"rfilename": "config.json", "size": -5, "blobId": "1"}

# name: (repository, words of the message)
BY_REPOSITORY = {
    "org/absent": (None, ("no such model", "HF_TOKEN")),
    "org/model@absent": (None, ("not this revision",)),
    "org/private": (StubRepository({}, token="other"), ("refused access", "HF_TOKEN", "403")),
    "org/gated": (StubRepository({}, token="other", gated=True), ("gated", "accept its conditions", "/org/gated")),
    "org/huge": (_changed(model_00002_of_00002_safetensors=HUGE), ("needs", "are free", "HF_HOME")),
    "org/pickles": (
        StubRepository({"config.json": TEXT, "pytorch_model.bin": StubFile(b"x", large=True)}),
        ("pickle", "never loaded"),
    ),
    "org/weightless": (StubRepository({"config.json": TEXT}), ("no safetensors weights",)),
    "org/configless": (_changed(config_json=None), ("no config.json",)),
    "org/shardless": (_changed(model_00002_of_00002_safetensors=None), (SECOND_SHARD, "does not list")),
    "org/traversing": (_changed(model_safetensors_index_json=TRAVERSING), ("plain name", "passwd")),
    "org/faulty": (StubRepository({}, fail_with=500), ("fault of its own", "500")),
    "org/busy": (StubRepository({}, fail_with=429), ("slow down", "429")),
    "org/teapot": (StubRepository({}, fail_with=418), ("refused the request", "418")),
    "org/portal": (StubRepository({}, api_answer=b"<html>Log in</html>"), ("cannot be understood", "HF_ENDPOINT")),
    "org/list": (StubRepository({}, api_answer=b"[]"), ("cannot be understood",)),
    "org/commit": (StubRepository({}, api_answer=_listing("../../x")), ("cannot be understood", "../../x")),
    "org/hash": (
        StubRepository({}, api_answer=_listing("1" * 40, STRANGE_HASH)),
        ("cannot be understood", "model.saf"),
    ),
    "org/size": (StubRepository({}, api_answer=_listing("1" * 40, HUGE_SIZE)), ("cannot be understood", "config.json")),
    "demo": (None, ("already on this machine",)),
    "../nothing/there": (None, ("is a path, and nothing is there", "org/name")),
    "org/../x": (None, ("is no model", "org/name[:quant][@revision]")),
}
PULL_ALL = """
import json, sys
from openautoglm.checkpoint.hub import pull
from openautoglm.errors import OpenAutoGLMError
found = {}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = ["", pull(name).commit]
    except OpenAutoGLMError as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """Pull every bad repository, one after the other, in one process that must survive them all."""
    repositories = {name: case[0] for name, case in BY_REPOSITORY.items() if case[0] is not None}
    with StubHub({NAME: StubRepository(sharded_files()), **repositories}) as hub:
        client = Client(hub, tmp_path_factory.mktemp("home"))
        done = client.run("-c", PULL_ALL, json.dumps([*BY_REPOSITORY, NAME]), HF_TOKEN="hf_canary")
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


@pytest.mark.parametrize("name", BY_REPOSITORY)
def test_a_bad_repository_says_what_to_do(messages: dict[str, tuple[str, str]], name: str):
    kind, message = messages[name]
    assert kind == ("CheckpointFormatError" if name == "org/traversing" else "HubError")
    assert "hf_canary" not in message
    for word in BY_REPOSITORY[name][1]:
        assert word in message


def test_the_good_model_is_pulled_after_all_the_bad_ones(messages: dict[str, tuple[str, str]]):
    assert tuple(messages[NAME]) == ("", "1" * 40)


ENVIRONMENTS = {
    "offline": ({"HF_HUB_OFFLINE": "1"}, ("HF_HUB_OFFLINE", "not complete in the local cache")),
    "refused": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ("cannot reach http://127.0.0.1:9", "HF_ENDPOINT")),
    "read-only cache": ({"HF_HOME": "/proc/self"}, ("cannot write", "HF_HOME")),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_a_bad_environment_says_what_to_do(client: Client, case: str):
    environment, words = ENVIRONMENTS[case]
    done = client.cli("pull", NAME, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def test_a_full_disk_during_the_download(client: Client):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        f"sys.argv = ['openautoglm', 'pull', '{NAME}'];"
        "from openautoglm.cli.main import main; main()"
    )
    done = client.run("-c", code)
    assert done.returncode == 1
    assert "no room left" in done.stderr
    assert "Traceback" not in done.stderr
    assert client.cli("pull", NAME).returncode == 0


def test_two_revisions_contradict_each_other(client: Client):
    done = client.cli("pull", f"{NAME}@main", "--revision", "other")
    assert done.returncode == 1
    assert "give one of them" in done.stderr


def test_nothing_is_written_outside_the_cache(client: Client, hub: StubHub):
    hub.repositories[NAME].files["..%2f..%2fescaped.json"] = TEXT
    assert client.cli("pull", NAME).returncode == 0
    outside = [path for path in Path(client.home.parent).rglob("*") if "escaped" in path.name or "outside" in path.name]
    assert outside == []
