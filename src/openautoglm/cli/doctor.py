"""`openautoglm doctor`: what this machine offers, and one line of advice for each finding."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from openautoglm.cli.doctor_checks import (
    disk_speed_finding,
    driver_finding,
    network_finding,
    system_finding,
    training_findings,
)
from openautoglm.cli.doctor_finding import OK, PROBLEM, WARNING, Finding, finding
from openautoglm.cli.model_argument import model_argument
from openautoglm.units import GIB, format_bytes

if TYPE_CHECKING:
    from openautoglm.spec.machine import MachineSpec
    from openautoglm.spec.plan import Plan

LOW_DISK_BYTES = 20 * GIB
LOW_MEMORY_BYTES = 2 * GIB
_PACKAGES = ("openautoglm", "numpy", "tokenizers", "jinja2", "huggingface_hub", "msgspec", "fastapi", "uvicorn")


@click.command("doctor")
@model_argument(required=False)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["inference", "train"]),
    default="inference",
    show_default=True,
    help="What the machine is to do.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor_command(context: click.Context, model: str | None, purpose: str, as_json: bool) -> None:
    """Check this machine and this installation, and with MODEL what of it fits here.

    Each finding has a line of advice, and each check an end: the disk is tried and the network asked for a few seconds.
    Exit code 1 if something does not work.
    """
    from openautoglm.probe.machine import probe_machine

    machine = probe_machine()
    findings = [*_machine_findings(machine), *_installation_findings(machine)]
    findings += [disk_speed_finding(machine.disk.path), network_finding()]
    if model is not None:
        findings.extend(_model_findings(model, machine))
    if purpose == "train":
        findings.extend(training_findings(model, min(machine.memory.available_bytes, machine.memory.limit_bytes)))
    if as_json:
        answer = {"schema_version": 1, "findings": [asdict(line) for line in findings]}
        click.echo(json.dumps(answer, indent=2))
    else:
        width = max(len(line.name) for line in findings)
        for line in findings:
            click.echo(f"{line.status:<8}{line.name:<{width}}  {line.found}")
            click.echo(f"{'':8}{'':{width}}  -> {line.advice}")
    if any(line.status == PROBLEM for line in findings):
        context.exit(1)


def _machine_findings(machine: MachineSpec) -> Iterator[Finding]:
    cpu, disk = machine.cpu, machine.disk
    yield finding(
        "processor",
        f"{cpu.name} ({cpu.architecture}), {cpu.num_cores} usable core{'s' * (cpu.num_cores != 1)}",
        "compute runs on all of them; --threads leaves some to others"
        if cpu.num_cores > 1
        else "one core serves one reader at most: widen the affinity or the processor quota if there are more",
        OK if cpu.num_cores > 1 else WARNING,
    )
    yield _instruction_sets(machine)
    yield from _memory_findings(machine)
    low_disk = disk.free_bytes < LOW_DISK_BYTES
    yield finding(
        "disk",
        f"{format_bytes(disk.free_bytes)} of {format_bytes(disk.total_bytes)} free for {disk.path}",
        "models of several billion parameters will not fit: free some space, or move HF_HOME and XDG_CACHE_HOME"
        if low_disk
        else "enough for models of a few billion parameters",
        WARNING if low_disk else OK,
    )
    for gpu in machine.gpus:
        yield finding(
            "accelerator",
            f"{gpu.name}, {format_bytes(gpu.free_bytes)} of {format_bytes(gpu.memory_bytes)} free",
            "described only: this version computes on the processor",
        )


def _instruction_sets(machine: MachineSpec) -> Finding:
    best = machine.cpu.isas[-1]
    advice = {
        "amx": "the fastest kernels run",
        "avx512bf16": "the fastest kernels for processors without AMX run",
        "avx512": "the fastest integer kernels run; bf16 attention takes a slower path",
        "avx2": "kernels without VNNI run: quantised models compute at about a third of the speed",
    }.get(best, "only portable kernels run, many times slower: use a processor with AVX2 or better")
    return finding("instruction sets", ", ".join(machine.cpu.isas), advice, WARNING if best == "scalar" else OK)


def _memory_findings(machine: MachineSpec) -> Iterator[Finding]:
    memory = machine.memory
    low = memory.available_bytes < LOW_MEMORY_BYTES
    yield finding(
        "memory",
        f"{format_bytes(memory.available_bytes)} of {format_bytes(memory.total_bytes)} available",
        "little is left: close other programs, or plan with a small --memory"
        if low
        else "plans use what is available unless --memory says otherwise",
        WARNING if low else OK,
    )
    limited = memory.limit_bytes < memory.total_bytes
    yield finding(
        "control group limit",
        format_bytes(memory.limit_bytes) if limited else "none",
        "plans stay within it; raise the container's limit for larger models" if limited else "all memory may be used",
    )
    huge = memory.transparent_huge_pages in ("always", "madvise")
    yield finding(
        "huge pages",
        f"transparent, {memory.transparent_huge_pages}",
        "weights and KV cache ask for them"
        if huge
        else "decoding reads memory up to a third slower without: "
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        OK if huge else WARNING,
    )
    yield finding(
        "swap",
        format_bytes(memory.swap_bytes) if memory.swap_bytes else "none",
        "a model that is swapped out decodes at disk speed: keep budgets within memory"
        if memory.swap_bytes
        else "nothing of a model can be swapped out",
    )


def _installation_findings(machine: MachineSpec) -> Iterator[Finding]:
    yield system_finding()
    yield driver_finding(len(machine.gpus))
    yield _core_finding(machine)
    compiler = _compiler()
    yield finding(
        "compiler",
        compiler or "none",
        "installing from source works" if compiler else "wheels need none; from source, install g++ 11 or newer",
        OK if compiler else WARNING,
    )
    yield finding(
        "python",
        f"{platform.python_version()} ({platform.python_implementation()})",
        "supported",
    )
    versions = _package_versions()
    missing = [name for name, version in versions.items() if version is None]
    yield finding(
        "packages",
        ", ".join(f"{name} {version or 'absent'}" for name, version in versions.items()),
        _packages_advice(missing),
        PROBLEM if set(missing) - {"openautoglm"} else OK,
    )


def _packages_advice(missing: list[str]) -> str:
    if missing == ["openautoglm"]:
        return "complete; openautoglm itself runs from its sources"
    return f"install {', '.join(missing)}: pip install openautoglm" if missing else "complete"


def _core_finding(machine: MachineSpec) -> Finding:
    try:
        from openautoglm.native import _core
    except ImportError as error:
        return finding("native core", f"does not load: {error}", "reinstall: pip install --force-reinstall .", PROBLEM)
    isas = tuple(_core.available_isas())
    if set(isas) == set(machine.cpu.isas):
        return finding("native core", f"loads; kernels for {', '.join(isas)}", "OPENAUTOGLM_ISA chooses another set")
    return finding(
        "native core",
        f"loads; kernels for {', '.join(isas)}, the processor has {', '.join(machine.cpu.isas)}",
        "the build or the system leaves some out: rebuild with a newer compiler if speed matters",
        WARNING,
    )


def _compiler() -> str | None:
    """Return the first line of the C++ compiler's version, None where there is none that answers."""
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        return None
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return answer.stdout.splitlines()[0] if answer.stdout else path


def _package_versions() -> dict[str, str | None]:
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _disk_for_model(plan: Plan, machine: MachineSpec) -> Finding:
    """Say whether the caches have room for a checkpoint and its packed weights."""
    needed = sum(part.num_bytes for part in plan.breakdown.parts if part.component == "disk")
    enough = needed <= machine.disk.free_bytes
    return finding(
        "disk for the model",
        f"checkpoint and packed weights take {format_bytes(needed)}, {format_bytes(machine.disk.free_bytes)} are free",
        "enough, a checkpoint that is here already included"
        if enough
        else "free some space, or move the caches (HF_HOME, XDG_CACHE_HOME); --no-cache keeps no packed weights",
        OK if enough else WARNING,
    )


def _model_findings(model: str, machine: MachineSpec) -> Iterator[Finding]:
    from openautoglm.engine.assemble import prepare
    from openautoglm.engine.options import EngineOptions
    from openautoglm.errors import DoesNotFitError, OpenAutoGLMError
    from openautoglm.spec.formats import NumberFormat
    from openautoglm.spec.goal import Goal
    from openautoglm.spec.offload import OffloadMode

    for quant in (NumberFormat.BF16, NumberFormat.INT8, NumberFormat.INT4):
        name = f"fits as {quant}"
        try:
            plan = prepare(EngineOptions(model=model, goal=Goal(quant=quant, offload=OffloadMode.NONE))).plan
        except DoesNotFitError as error:
            yield finding(name, "no", f"the nearest that does: {error.suggestions[0]}", WARNING)
            continue
        except OpenAutoGLMError as error:
            yield finding("model", f"cannot be planned: {error}", "nothing of it was loaded", PROBLEM)
            return
        if quant is NumberFormat.INT8:
            yield _disk_for_model(plan, machine)
        size = format_bytes(plan.breakdown.total_bytes)
        yield finding(
            name,
            f"yes: {plan.concurrency} x {plan.context_tokens:,} tokens in {size}",
            f"openautoglm run {plan.model} --quant {quant}"
            if plan.runnable
            else f"planned only, it cannot run yet: {', '.join(plan.unsupported)}",
            OK if plan.runnable else WARNING,
        )
