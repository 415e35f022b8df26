"""pull: what is fetched, cached, resumed, verified, and what each failure says."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, Client, sharded_files, weights
from tests.hub.stub_hub import StubFile, StubHub, StubRepository

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_pull_fetches_a_checkpoint_and_nothing_else(client: Client, hub: StubHub):
    done = client.cli("pull", NAME, "--json")
    assert done.returncode == 0, done.stderr
    pulled = json.loads(done.stdout)
    directory = Path(pulled["path"])
    assert {path.name for path in directory.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json", *SHARDS,
    }  # fmt: skip
    files = hub.repositories[NAME].files
    assert all(path.read_bytes() == files[path.name].content for path in directory.iterdir())
    assert pulled["commit"] == "1" * 40
    assert pulled["total_bytes"] == sum(path.stat().st_size for path in directory.iterdir())
    assert not [path for path in client.blobs() if path.name.endswith("incomplete")]
    assert (client.home / "hub" / "models--org--model" / "refs" / "main").read_text() == "1" * 40


def test_the_second_pull_and_resolve_fetch_nothing(client: Client, hub: StubHub):
    first = client.cli("pull", NAME)
    hub.requests.clear()
    second = client.cli("pull", NAME)
    assert second.stdout == first.stdout
    assert [request.path for request in hub.requests if request.path.startswith("/api/models")] != []
    assert not hub.gets("/resolve/")
    assert not hub.gets("/cdn/")
    hub.requests.clear()
    code = f"from openautoglm.checkpoint.hub import resolve; print(resolve('{NAME}:int4'))"
    assert client.run("-c", code).stdout == first.stdout
    assert hub.requests == []


def test_a_broken_connection_is_resumed_within_one_pull(client: Client, hub: StubHub):
    hub.break_after_bytes = [1_500_000, 300_000]
    done = client.cli("pull", NAME)
    assert done.returncode == 0, done.stderr
    ranges = [request.range for request in hub.gets() if SHARDS[0] in request.path]
    begins = [int(range_.removeprefix("bytes=").split("-")[0]) for range_ in ranges if range_]
    assert begins[0] == 0
    assert begins == sorted(set(begins))
    assert len(begins) == 3
    assert (Path(done.stdout.strip()) / SHARDS[0]).read_bytes() == hub.repositories[NAME].files[SHARDS[0]].content


@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_an_interrupted_pull_resumes_in_the_next_process(client: Client, hub: StubHub, ignore_ranges: bool):
    hub.repositories[NAME] = StubRepository(
        {**sharded_files(), SHARDS[0]: StubFile(weights(0, ("a", "b"), 2000), large=True)}
    )
    hub.seconds_per_piece = 0.05
    process = client.start("-m", "openautoglm", "pull", NAME)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 2 << 20 for path in client.blobs() if path.name.endswith("incomplete")):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "run the same command again" in stderr
    [partial] = [path for path in client.blobs() if path.name.endswith("incomplete")]
    kept_bytes = partial.stat().st_size
    # Nothing calls the half-fetched model complete, with or without a network.
    assert client.cli("pull", NAME, HF_HUB_OFFLINE="1").returncode == 1

    hub.seconds_per_piece = 0.0
    hub.ignore_ranges = ignore_ranges
    hub.requests.clear()
    done = client.cli("pull", NAME)
    assert done.returncode == 0, done.stderr
    [request] = [request for request in hub.gets() if SHARDS[0] in request.path]
    assert request.range.startswith(f"bytes={kept_bytes}-")
    assert (Path(done.stdout.strip()) / SHARDS[0]).read_bytes() == hub.repositories[NAME].files[SHARDS[0]].content
    assert not [path for path in client.blobs() if path.name.endswith("incomplete")]


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json"])
def test_damaged_bytes_are_found_removed_and_fetched_again(client: Client, hub: StubHub, name: str):
    file = hub.repositories[NAME].files[name]
    file.sent = file.content[:5] + bytes([file.content[5] ^ 1]) + file.content[6:]
    done = client.cli("pull", NAME)
    assert done.returncode == 1
    assert f"{name} arrived damaged" in done.stderr
    file.sent = None
    done = client.cli("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / name).read_bytes() == file.content


def test_a_damaged_partial_file_does_not_poison_the_download(client: Client, hub: StubHub):
    file = hub.repositories[NAME].files[SHARDS[0]]
    blobs = client.home / "hub" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{file.sha256}.incomplete"
    partial.write_bytes(b"x" * 1000)
    assert "arrived damaged" in client.cli("pull", NAME).stderr
    partial.write_bytes(b"x" * (len(file.content) + 1))
    done = client.cli("pull", NAME)
    assert done.returncode == 0, done.stderr


def test_a_cached_file_of_the_wrong_size_is_fetched_again(client: Client, hub: StubHub):
    directory = Path(client.cli("pull", NAME).stdout.strip())
    with (directory / SHARDS[0]).open("r+b") as file:
        file.truncate(100)
    done = client.cli("pull", NAME)
    assert done.returncode == 0
    assert (directory / SHARDS[0]).read_bytes() == hub.repositories[NAME].files[SHARDS[0]].content


def test_two_pulls_at_once_share_the_work(client: Client, hub: StubHub):
    hub.seconds_per_piece = 0.02
    processes = [client.start("-m", "openautoglm", "pull", NAME) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert len(hub.gets()) == len(SHARDS)


def test_a_single_file_that_git_stores(client: Client, hub: StubHub):
    files = {"config.json": StubFile(b"{}"), "model.safetensors": StubFile(weights(0, ("a",), 10))}
    hub.repositories["org/small"] = StubRepository(files, revisions=("main", "refs/pr/1"))
    done = client.cli("pull", "org/small", "--revision", "refs/pr/1")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == files["model.safetensors"].content


def test_the_token_is_sent_to_the_hub_and_not_to_its_storage(client: Client, hub: StubHub):
    hub.repositories[NAME].token = "hf_canary"
    done = client.cli("pull", NAME, HF_TOKEN="hf_canary")
    assert done.returncode == 0, done.stderr
    assert {request.authorization for request in hub.gets("/api/models")} == {"Bearer hf_canary"}
    assert {request.authorization for request in hub.gets("/cdn/")} == {None}


def test_offline_uses_what_is_complete(client: Client, hub: StubHub):
    path = client.cli("pull", NAME).stdout
    hub.requests.clear()
    code = f"from openautoglm.checkpoint.hub import resolve; print(resolve('{NAME}@main'))"
    assert client.run("-c", code, HF_HUB_OFFLINE="1").stdout == path
    assert client.run("-c", code, HF_ENDPOINT="http://127.0.0.1:9").stdout == path
    assert hub.requests == []


def test_an_incomplete_snapshot_is_completed_or_refused(client: Client, hub: StubHub):
    """Other tools record a branch before its files are there, and fetch weights without a tokenizer."""
    path = Path(client.cli("pull", NAME).stdout.strip())
    code = f"from openautoglm.checkpoint.hub import resolve; print(resolve('{NAME}'))"
    for name in (SHARDS[1], "config.json", "tokenizer.json"):
        (path / name).unlink()
        if name != "tokenizer.json":
            refused = client.run("-c", code, HF_HUB_OFFLINE="1")
            assert "HubError" in refused.stderr
            assert "not complete in the local cache" in refused.stderr
        assert client.run("-c", code).stdout.strip() == str(path)
        assert (path / name).read_bytes() == hub.repositories[NAME].files[name].content


def test_a_moved_branch_is_followed_by_pull_only(client: Client, hub: StubHub):
    old = client.cli("pull", NAME).stdout
    repository = hub.repositories[NAME]
    repository.commit = "2" * 40
    repository.files["config.json"] = StubFile(b'{"model_type": "qwen3"}')
    code = f"from openautoglm.checkpoint.hub import resolve; print(resolve('{NAME}'))"
    assert client.run("-c", code).stdout == old
    hub.requests.clear()
    new = client.cli("pull", NAME).stdout
    assert new != old
    # The weights are the same blobs.
    assert not hub.gets("/cdn/")
    assert client.run("-c", code).stdout == new
    assert client.run("-c", code.replace(NAME, f"{NAME}@{'1' * 40}")).stdout == old


def test_ls_shows_what_pull_fetched(client: Client, hub: StubHub):
    path = client.cli("pull", NAME).stdout.strip()
    (Path(path).parent / ("2" * 40)).mkdir()
    (Path(path).parent / ("2" * 40) / "config.json").write_text("{}")
    models = json.loads(client.cli("ls", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["demo", NAME, NAME]
    by_commit = {model["commit"]: model for model in models}
    good = by_commit["1" * 40]
    assert good["path"] == path
    assert good["revisions"] == ["main"]
    assert good["size_bytes"] == sum(file.stat().st_size for file in Path(path).iterdir())
    assert [by_commit[commit]["complete"] for commit in ("", "1" * 40, "2" * 40)] == [True, True, False]
    table = client.cli("ls").stdout.splitlines()
    assert table[0].split() == ["MODEL", "REVISION", "SIZE", "STATE", "PATH"]
    assert [line.split()[0] for line in table[1:]] == ["demo", NAME, NAME]
    assert "incomplete" in table[2] + table[3]


CONFIG_CODE = f"""
import json
from openautoglm.checkpoint.hub import resolve_config
config, tensors = resolve_config('{NAME}')
print(json.dumps([config, {{n: [t.dtype, t.shape, t.begin, t.end, t.file.name] for n, t in tensors.items()}}]))
"""


@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_resolve_config_reads_headers_and_no_weights(client: Client, hub: StubHub, ignore_ranges: bool):
    hub.ignore_ranges = ignore_ranges
    done = client.run("-c", CONFIG_CODE)
    assert done.returncode == 0, done.stderr
    config, tensors = json.loads(done.stdout)
    assert config == {"model_type": "llama", "hidden_size": 8}
    assert [request.range for request in hub.gets()] == ["bytes=0-131071"] * 2
    assert sorted(path.stat().st_size for path in client.blobs()) == sorted(
        len(hub.repositories[NAME].files[name].content) for name in ("config.json", "model.safetensors.index.json")
    )
    # The same answer as from the files themselves.
    assert client.cli("pull", NAME).returncode == 0
    hub.requests.clear()
    assert json.loads(client.run("-c", CONFIG_CODE).stdout) == [config, tensors]
    assert hub.requests == []
    assert tensors["c"][:2] == ["F32", [600, 500]]


def test_a_header_longer_than_the_first_request(client: Client, hub: StubHub):
    header = {f"tensor.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(4000)}
    text = json.dumps(header).encode()
    assert len(text) > 200_000
    content = len(text).to_bytes(8, "little") + text + bytes(4000)
    hub.repositories[NAME].files = {
        "config.json": StubFile(b"{}"),
        "model.safetensors": StubFile(content, large=True),
    }
    _, tensors = json.loads(client.run("-c", CONFIG_CODE).stdout)
    assert len(tensors) == 4000
    assert [request.range for request in hub.gets()] == ["bytes=0-131071", f"bytes=131072-{len(text) + 7}"]
