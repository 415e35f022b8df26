"""Findings of the doctor: complete, each with advice, and true of this machine."""

import json
import platform

from click.testing import CliRunner

from openautoglm.cli.doctor import doctor_command
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
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 1000,  # three trillion parameters: more than any machine holds
        "num_attention_heads": 128,
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
    assert "--memory" in found["fits as int4"]["advice"]


def test_the_table_names_each_finding_and_its_advice():
    text = CliRunner().invoke(doctor_command, [], catch_exceptions=False).output
    lines = text.splitlines()
    assert sum("-> " in line for line in lines) == len(lines) // 2
    assert any(line.startswith("ok") and "native core" in line for line in lines)
