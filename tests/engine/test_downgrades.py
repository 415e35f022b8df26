"""What a machine makes a load do differently: each machine's notices, and the real load's with --strict."""

from __future__ import annotations

from dataclasses import replace

import pytest

import openautoglm
from openautoglm import LLM
from openautoglm.engine.downgrades import note_downgrades
from openautoglm.errors import DowngradeError
from openautoglm.native import _core
from openautoglm.probe.gpu import probe_gpus
from openautoglm.probe.machine import probe_machine
from openautoglm.spec.machine import GpuSpec, MachineSpec
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.spec.plan import Plan
from openautoglm.units import GIB

BEST = _core.available_isas()[-1]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return openautoglm.plan("demo", quant="int8", context=256, concurrency=2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MachineSpec:
    """This machine, as good as machines get for these kernels."""
    monkeypatch.delenv("OPENAUTOGLM_ISA", raising=False)
    real = probe_machine()
    memory = replace(real.memory, transparent_huge_pages="madvise")
    return replace(real, memory=memory, gpus=(), cpu=replace(real.cpu, isas=tuple(_core.available_isas())))


def codes(machine: MachineSpec, plan: Plan, *, max_running: int | None = None) -> list[NoticeCode]:
    notices = Notices()
    note_downgrades(notices, machine, plan, max_running=max_running)
    # Whether this processor has bf16 is no matter of these tests, but of the two that say so.
    return [notice.code for notice in notices.taken() if notice.code is not NoticeCode.BF16_WIDENED]


def test_a_good_machine_has_nothing_to_tell(machine: MachineSpec, plan: Plan):
    assert codes(machine, plan, max_running=plan.max_step_rows) == []


def test_each_downgrade_has_its_code(machine: MachineSpec, plan: Plan):
    gpu = GpuSpec(name="H100", memory_bytes=80 * GIB, free_bytes=80 * GIB)
    assert codes(replace(machine, gpus=(gpu,)), plan) == [NoticeCode.ACCELERATOR_UNUSED]
    never = replace(machine.memory, transparent_huge_pages="never")
    assert codes(replace(machine, memory=never), plan) == [NoticeCode.HUGE_PAGES_OFF]
    assert codes(machine, plan, max_running=plan.max_step_rows + 1) == [NoticeCode.MAX_RUNNING_LOWERED]
    better = replace(machine.cpu, isas=(*machine.cpu.isas, "avx1024"))
    assert codes(replace(machine, cpu=better), plan) == [NoticeCode.INSTRUCTION_SET_LOWERED]


def test_kernels_asked_for_by_name_are_no_downgrade(machine: MachineSpec, plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAUTOGLM_ISA", "scalar")
    assert codes(machine, plan) == []


def test_bf16_without_bf16_arithmetic_is_told(machine: MachineSpec, plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAUTOGLM_ISA", "scalar")
    notices = Notices()
    note_downgrades(notices, machine, plan, max_running=None)
    assert [notice.code for notice in notices.taken()] == [NoticeCode.BF16_WIDENED]
    portable = openautoglm.plan("demo", quant="int8", context=256, concurrency=2, attention="portable")
    notices = Notices()
    note_downgrades(notices, machine, portable, max_running=None)
    assert notices.taken() == ()


@pytest.mark.parametrize("isa", _core.available_isas())
def test_only_sets_without_bf16_arithmetic_say_so(
    isa: str, machine: MachineSpec, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAUTOGLM_ISA", isa)
    notices = Notices()
    note_downgrades(notices, machine, plan, max_running=None)
    told = NoticeCode.BF16_WIDENED in [notice.code for notice in notices.taken()]
    assert told == (_core.probe_peak("bf16", 1, 0.005, isa) == 0)


def test_accelerators_can_be_left_out_on_purpose(tmp_path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559, 81000'\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.name for gpu in probe_gpus(str(program))] == ["NVIDIA H100"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert probe_gpus(str(program)) == ()


def test_a_load_tells_or_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("OPENAUTOGLM_ISA", "scalar")
    settings = {"quant": "int8", "context": 64, "concurrency": 1}
    with LLM("demo", cache="off", **settings) as llm:  # type: ignore[arg-type]
        assert NoticeCode.BF16_WIDENED in [notice.code for notice in llm.notices]
    assert "bf16_widened: " in caplog.text
    with pytest.raises(DowngradeError) as raised:
        LLM("demo", cache="off", strict=True, **settings)  # type: ignore[arg-type]
    assert raised.value.code
