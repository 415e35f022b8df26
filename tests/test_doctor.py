"""Findings of the doctor: complete, each with advice, and true of this machine."""

import json
import platform
import re
import socket
import threading
import time
from dataclasses import replace

from click.testing import CliRunner

from openautoglm.cli.doctor import doctor_command
from openautoglm.cli.doctor_checks import NETWORK_SECONDS, disk_speed_finding, network_finding
from openautoglm.native import _core
from openautoglm.probe.memory import probe_memory


def findings(*arguments):
    result = CliRunner().invoke(doctor_command, [*arguments, "--json"], catch_exceptions=False)
    return {finding["name"]: finding for finding in json.loads(result.output)["findings"]}, result.exit_code


def test_every_finding_has_advice_and_the_installation_works():
    found, code = findings()
    expected = {
        "processor",
        "instruction sets",
        "memory",
        "control group limit",
        "huge pages",
        "swap",
        "disk",
        "native core",
        "compiler",
        "python",
        "packages",
        "system",
        "driver",
        "disk speed",
        "network",
    }
    assert expected <= set(found)
    assert all(finding["advice"] and finding["found"] for finding in found.values())
    assert {finding["status"] for finding in found.values()} <= {"ok", "warning", "problem"}
    assert code == 0
    assert platform.python_version() in found["python"]["found"]
    assert all(isa in found["native core"]["found"] for isa in _core.available_isas())
    assert probe_memory().transparent_huge_pages in found["huge pages"]["found"]


def test_a_model_is_checked_in_each_format():
    found, code = findings("demo")
    assert code == 0
    for quant in ("bf16", "int8", "int4"):
        finding = found[f"fits as {quant}"]
        assert finding["status"] == "ok"
        assert finding["advice"] == f"openautoglm run demo --quant {quant}"


def test_a_model_that_is_too_big_says_what_fits(tmp_path):
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 65536,
        "intermediate_size": 212992,
        "num_hidden_layers": 80,  # four trillion parameters: more than any machine holds
        "num_attention_heads": 512,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    found, _ = findings(str(file))
    assert found["fits as int4"]["status"] == "warning"
    assert "the nearest that does: openautoglm plan" in found["fits as int4"]["advice"]


def test_the_table_names_each_finding_and_its_advice():
    text = CliRunner().invoke(doctor_command, [], catch_exceptions=False).output
    lines = text.splitlines()
    assert sum("-> " in line for line in lines) == len(lines) // 2
    assert any(line.startswith("ok") and "native core" in line for line in lines)


def test_the_disk_is_tried_and_nothing_stays(tmp_path):
    found = disk_speed_finding(str(tmp_path / "not" / "there" / "yet"))
    reads, writes = re.findall(r"(?:reads|writes) ([0-9.]+) [KMG]iB/s", found.found)
    assert float(reads) > 0 < float(writes)
    assert list(tmp_path.iterdir()) == []
    found = disk_speed_finding("/proc/nowhere")
    assert found.status == "warning"
    assert "cannot be written" in found.found


def test_the_network_is_asked_with_an_end(monkeypatch):
    """A server that answers, one that takes the question and says nothing, and no server at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert network_finding().status == "ok"
        thread.join()
        started = time.monotonic()
        silent = network_finding()
        assert silent.status == "warning"
        assert time.monotonic() - started < NETWORK_SECONDS + 2
    assert network_finding().status == "warning"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in network_finding().found


def test_training_is_checked_when_it_is_asked_for():
    found, code = findings("demo", "--for", "train")
    assert code == 0
    for method in ("full", "lora", "qlora"):
        assert found[f"trains with {method}"]["status"] == "ok"
    assert "torch" in found["packages for training"]["found"]
    assert not any("train" in name for name in findings("demo")[0])


def test_a_disk_without_room_is_a_warning(tmp_path, monkeypatch):
    from openautoglm.cli import doctor
    from openautoglm.probe.machine import probe_machine

    machine = probe_machine()
    small = replace(machine, disk=replace(machine.disk, free_bytes=1 << 20))
    found = {line.name: line for line in doctor._model_findings("demo", small)}
    assert found["disk for the model"].status == "warning"
    assert "HF_HOME" in found["disk for the model"].advice
