"""The options of serve that redact and audit, and `openautoglm audit verify`, as an operator types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openautoglm.serve.audit import AuditLog, AuditOptions
from openautoglm.settings import REDACT_KINDS, REDACT_MODES
from openautoglm.text.private_data import Kind
from openautoglm.text.redact import Mode

KEY = "a key of more than sixteen bytes"


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openautoglm", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=os.environ | environment
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--redact", "some"], "mask"),
        (["--redact-answers"], "need --redact"),
        (["--redact-kinds", "mobile"], "need --redact"),
        (["--redact", "mask", "--redact-kinds", "mobile,fax"], "'fax' is no kind"),
        (["--redact", "mask", "--redact-key", "x"], "--redact hash"),
        (["--audit-log", "never.jsonl"], "OPENAUTOGLM_AUDIT_KEY"),
        (["--audit-log", "never.jsonl", "--audit-key", "short"], "16 bytes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_is_said_before_the_load(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run("serve", "demo", "--port", "0", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "headroom" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_settings_know_what_the_redactor_knows() -> None:
    assert set(REDACT_KINDS) == {kind.value for kind in Kind}
    assert set(REDACT_MODES) == {"off", *(mode.value for mode in Mode)}


def test_verify_tells_by_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = AuditLog(AuditOptions(file=file, key=KEY.encode()))
    audit.append("request", {"request_id": "r"})
    audit.close()
    good = run("audit", "verify", str(file), OPENAUTOGLM_AUDIT_KEY=KEY)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("3 lines are as they were written; 0 entries")
    assert run("audit", "verify", str(file), "--at-least", "4", OPENAUTOGLM_AUDIT_KEY=KEY).returncode == 1
    assert run("audit", "verify", str(file)).returncode == 2
    assert run("audit", "verify", str(file), "--audit-key", KEY + "x").returncode == 1
    file.write_bytes(file.read_bytes().replace(b'"r"', b'"s"'))
    bad = run("audit", "verify", str(file), OPENAUTOGLM_AUDIT_KEY=KEY)
    assert bad.returncode == 1
    assert "line 2: its seal does not fit" in bad.stderr
    assert "Traceback" not in bad.stderr
