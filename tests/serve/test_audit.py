"""The audit log: every change is detected, a full disk does what was chosen, and no line holds a text."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import ConfigError
from openautoglm.serve.access import AccessOptions
from openautoglm.serve.audit import AuditLog, AuditOptions, WhenFull, check_key, head_file, verify
from openautoglm.serve.privacy import PrivacyOptions
from openautoglm.text.redact import Mode, RedactionOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

KEY = b"a key of more than sixteen bytes"
CANARY = "canary-5d41402a"


def write_log(directory: Path, num_entries: int = 6, prefix: str = "r") -> Path:
    file = directory / "audit.jsonl"
    audit = AuditLog(AuditOptions(file=file, key=KEY))
    for index in range(num_entries):
        assert audit.append("request", {"request_id": f"{prefix}{index}", "status": 200})
    audit.close()
    return file


def entries(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: the kernel itself refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_nobody_touched(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    verdict = verify(file, KEY)
    assert (verdict.num_lines, verdict.gaps, verdict.faults) == (8, 0, ())
    assert [entry["event"] for entry in entries(file)] == ["start", *["request"] * 6, "stop"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert head_file(file).stat().st_mode & 0o777 == 0o600
    # It goes on after a restart, in one chain.
    write_log(tmp_path)
    assert verify(file, KEY).num_lines == 16
    assert not verify(file, KEY).faults


def tampered(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the lines changed in one of the ways that a log can be: never as they were."""
    index = rng.randrange(len(lines))
    kind = rng.choice(["edit", "delete", "swap", "cut", "repeat", "byte", "insert"])
    changed = list(lines)
    if kind == "edit":
        changed[index] = changed[index].replace(b"200", b"201").replace(b"start", b"stort").replace(b"stop", b"stap")
    elif kind == "delete":
        del changed[index]
    elif kind == "swap":
        other = (index + 1) % len(lines)
        changed[index], changed[other] = changed[other], changed[index]
    elif kind == "cut":
        changed = changed[:index]
    elif kind == "repeat":
        changed.insert(index, lines[index])
    elif kind == "insert":
        changed.insert(index, b'{"seq":%d,"time":1,"event":"request","mac":"%s"}\n' % (index, b"0" * 64))
    else:
        position = rng.randrange(len(changed[index]))
        old = changed[index][position]
        changed[index] = changed[index][:position] + bytes([old ^ 1]) + changed[index][position + 1 :]
    assert changed != lines
    return changed


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 30))
def test_every_change_is_detected(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    file = write_log(tmp_path_factory.mktemp("log"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(tampered(lines, random.Random(seed))))
    assert verify(file, KEY).faults


def test_a_cut_end_is_detected_with_every_head_that_was_not_sealed(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    head = head_file(file).read_bytes()
    file.write_bytes(b"".join(lines[:5]))
    assert "missing at the end" in verify(file, KEY).faults[0]
    mac = json.loads(lines[4])["mac"].encode()
    for forged in (b"", b"%020d %s %s\n" % (4, mac, head.split()[2]), head.replace(head.split()[0], b"%020d" % 4)):
        head_file(file).write_bytes(forged)
        assert verify(file, KEY).faults
    head_file(file).unlink()
    assert verify(file, KEY).faults


def test_lines_of_another_log_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file, other = write_log(tmp_path), write_log(tmp_path / "other", prefix="s")
    lines, others = (one.read_bytes().splitlines(keepends=True) for one in (file, other))
    file.write_bytes(b"".join([*lines[:3], others[3], *lines[4:]]))
    assert "line 4: its seal does not fit" in verify(file, KEY).faults[0]


def test_another_key_fits_nothing(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    assert verify(file, KEY[::-1]).faults
    with pytest.raises(ConfigError, match="audit verify"):
        AuditLog(AuditOptions(file=file, key=KEY[::-1]))


def test_a_tampered_log_is_not_gone_on_with(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: data.rindex(b"{")])
    with pytest.raises(ConfigError, match="does not end where its head"):
        AuditLog(AuditOptions(file=file, key=KEY))
    file.unlink()
    with pytest.raises(ConfigError, match="does not end where its head"):
        AuditLog(AuditOptions(file=file, key=KEY))


def test_what_crashes_leave_is_gone_on_with(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    head, lines = head_file(file).read_bytes(), file.read_bytes()
    # Between a line and its head.
    audit = AuditLog(AuditOptions(file=file, key=KEY))
    head_file(file).write_bytes(head)
    assert not verify(file, KEY).faults
    audit._file.close()
    AuditLog(AuditOptions(file=file, key=KEY)).close()
    assert not verify(file, KEY).faults
    # In the middle of a line.
    with file.open("ab") as opened:
        opened.write(b'{"seq":11,"ti')
    assert "not complete" in verify(file, KEY).faults[0]
    AuditLog(AuditOptions(file=file, key=KEY)).close()
    assert not verify(file, KEY).faults
    assert file.read_bytes().startswith(lines)
    assert [entry["torn_bytes"] for entry in entries(file) if "torn_bytes" in entry] == [13]


def test_two_servers_do_not_share_a_log(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = AuditLog(AuditOptions(file=file, key=KEY))
    with pytest.raises(ConfigError, match="give each server its own"):
        AuditLog(AuditOptions(file=file, key=KEY))
    audit.close()


@pytest.mark.parametrize("room", range(0, 240, 40))
def test_a_full_disk_leaves_a_gap_that_is_counted(tmp_path: Path, room: int) -> None:
    file = tmp_path / "audit.jsonl"
    audit = AuditLog(AuditOptions(file=file, key=KEY))
    audit.append("request", {"request_id": "before"})
    with full_disk(file.stat().st_size + room):
        written = [audit.append("request", {"request_id": f"full{index}"}) for index in range(3)]
    missed = written.count(False)
    assert missed >= 2
    assert audit.num_missed == missed
    assert audit.append("request", {"request_id": "after"})
    assert audit.num_missed == 0
    audit.close()
    verdict = verify(file, KEY)
    assert not verdict.faults
    assert verdict.gaps == missed
    assert [e["request_id"] for e in entries(file) if "request_id" in e][-1] == "after"


def test_keys_that_could_be_guessed_are_refused() -> None:
    for key in (None, "", "short"):
        with pytest.raises(ConfigError, match="OPENAUTOGLM_AUDIT_KEY"):
            check_key(key)
    assert check_key("k" * 16) == b"k" * 16


@contextlib.contextmanager
def audited_server(tokenizer: Tokenizer, file: Path, when_full: WhenFull = WhenFull.BLOCK) -> Iterator[Live]:
    audit = AuditLog(AuditOptions(file=file, key=KEY, when_full=when_full))
    privacy = PrivacyOptions(redaction=RedactionOptions(mode=Mode.MASK))
    with live_server(tokenizer, audit=audit, privacy=privacy, access=AccessOptions(api_key="k", admin_key="a")) as live:
        live.http.headers["Authorization"] = "Bearer k"
        yield live
        live.wait_until_idle()
    audit.close()


def test_requests_are_written_down_without_their_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with audited_server(tokenizer, file) as server:
        whole = server.chat(f"{CANARY} 13812345678", user=CANARY)
        stream = server.chat(CANARY, stream=True)
        server.post("/v1/completions", {"prompt": CANARY, "best_of": 9})
        server.get(f"/v1/models/{CANARY}")
        server.get("/health")
        server.get("/metrics")
        server.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        server.get("/admin/memory", headers={"Authorization": "Bearer a"})
        assert stream.status_code == 200
    assert not verify(file, KEY).faults
    written = entries(file)
    assert CANARY not in file.read_text()
    begun = {e["request_id"]: e for e in written if e["event"] == "request"}
    ended = {e["request_id"]: e for e in written if e["event"] == "end"}
    assert set(begun) == set(ended)
    paths = [entry["path"] for entry in begun.values()]
    assert paths == ["/v1/chat/completions"] * 2 + ["/v1/completions", "other", "/admin/memory"]
    assert [e["caller"] for e in begun.values()] == ["api-key"] * 4 + ["admin-key"]
    first = ended[whole.headers["x-request-id"]]
    assert first["status"] == 200
    assert first["redacted_prompt"] == {"mobile": 1}
    assert first["answer_id"] == whole.json()["id"]
    assert first["prompt_tokens"] == whole.json()["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == whole.json()["usage"]["completion_tokens"]
    assert ended[stream.headers["x-request-id"]]["finished"] is True


@pytest.mark.parametrize("when_full", WhenFull)
def test_a_full_disk_blocks_or_goes_on_as_was_chosen(tokenizer: Tokenizer, tmp_path: Path, when_full: WhenFull) -> None:
    file = tmp_path / "audit.jsonl"
    with audited_server(tokenizer, file, when_full) as server:
        assert server.chat("before").status_code == 200
        num_requests = len(server.engine.requests)
        deadline = time.monotonic() + 10
        while entries(file)[-1]["event"] != "end" and time.monotonic() < deadline:
            time.sleep(0.01)  # that line is written beside the answer
        with full_disk(file.stat().st_size):
            answer = server.chat("full")
            metrics = server.get("/metrics").text
        if when_full is WhenFull.BLOCK:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "audit_unavailable"
            assert answer.headers["retry-after"] == "5"
            assert len(server.engine.requests) == num_requests
        else:
            assert answer.status_code == 200
        missing = 1 if when_full is WhenFull.BLOCK else 2
        assert f'openautoglm_audit_missed_entries{{model_name="small"}} {missing}.0' in metrics
        assert server.chat("after").status_code == 200
    verdict = verify(file, KEY)
    assert not verdict.faults
    assert verdict.gaps == missing
