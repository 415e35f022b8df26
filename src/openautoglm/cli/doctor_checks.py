"""Checks of `openautoglm doctor` beyond the description of the machine: disk speed, network, driver, training."""

from __future__ import annotations

import os
import platform
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from openautoglm.cli.doctor_finding import OK, WARNING, Finding, finding
from openautoglm.units import MIB, format_bytes

NETWORK_SECONDS = 4.0
SLOW_DISK_BYTES_PER_SECOND = 100 * MIB
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_HUB = "https://huggingface.co"
_TRAIN_PACKAGES = ("torch", "transformers", "safetensors")


def disk_speed_finding(directory: str) -> Finding:
    """Try the disk of the caches for a second or two, as plans with layers on disk do."""
    from openautoglm.memory.offload import NUM_READERS

    try:
        from openautoglm.executor.disk_speed import measure_disk

        speed = measure_disk(Path(directory), num_readers=NUM_READERS, write=True)
    except ImportError:
        return finding("disk speed", "not tried, as the native core does not load", "see native core", WARNING)
    except OSError as error:
        advice = "packed weights and downloads need a place that can be written: set XDG_CACHE_HOME and HF_HOME"
        return finding("disk speed", f"{directory} cannot be written: {error.strerror or error}", advice, WARNING)
    read, write = speed.bytes_per_second, speed.write_bytes_per_second or 0.0
    slow = read < SLOW_DISK_BYTES_PER_SECOND
    seconds = 1024 * MIB / read
    return finding(
        "disk speed",
        f"reads {format_bytes(int(read))}/s, writes {format_bytes(int(write))}/s"
        f"{'' if speed.direct else ' (through the page cache: this file system has no direct reads)'}",
        f"a gigabyte takes {seconds:.1f} s to load: put the caches on a faster disk (HF_HOME, XDG_CACHE_HOME)"
        if slow
        else f"a gigabyte takes {seconds:.1f} s to load",
        WARNING if slow else OK,
    )


def network_finding() -> Finding:
    """Ask the hub for its front page, for NETWORK_SECONDS at most."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return finding("network", "off, by HF_HUB_OFFLINE", "cached models work; unset it to download others")
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    problem = _ask(endpoint)
    if problem is None:
        return finding("network", f"{endpoint} answers", "models can be downloaded: openautoglm pull ORG/NAME")
    return finding(
        "network",
        f"{endpoint} does not answer: {problem}",
        "cached models and directories work; to download, check HTTPS_PROXY, or set HF_ENDPOINT to a mirror",
        WARNING,
    )


def _ask(endpoint: str) -> str | None:
    """Return why an address does not answer, None if it does. Looking a name up has no limit of its own, so that a
    thread does it which nobody waits for any longer than that."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the user's own setting
            with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):  # noqa: S310
                answers.put(None)
        except urllib.error.HTTPError:
            answers.put(None)  # it answers, if not with this page
        except (OSError, ValueError) as error:
            answers.put(str(getattr(error, "reason", error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=NETWORK_SECONDS)
    except queue.Empty:
        return f"nothing came within {NETWORK_SECONDS:g} s"


def driver_finding(num_accelerators: int) -> Finding:
    """Say which accelerator driver is loaded, if any."""
    if _DRIVER_FILE.is_file():
        version = _DRIVER_FILE.read_text(errors="replace").splitlines()[0].strip()
        return finding("driver", version, f"{num_accelerators} accelerators listed; this version computes without")
    return finding("driver", "none", "none is needed: this version computes on the processor")


def system_finding() -> Finding:
    """Name the operating system, its kernel and its C library."""
    library, version = platform.libc_ver()
    linux = platform.system() == "Linux"
    return finding(
        "system",
        f"{platform.system()} {platform.release()}, {library or 'C library'} {version or 'unknown'}",
        "supported" if linux else "only Linux is supported: run in a container or a virtual machine",
        OK if linux else WARNING,
    )


def training_findings(model: str | None, available_bytes: int) -> Iterator[Finding]:
    """Say whether packages for training are here, and what of `model` could be trained in this much memory."""
    from importlib import metadata

    versions = {}
    for name in _TRAIN_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    missing = [name for name, version in versions.items() if version == "absent"]
    yield finding(
        "packages for training",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "pip install 'openautoglm[train]'" if missing else "complete",
        WARNING if missing else OK,
    )
    if model is not None:
        yield from _training_estimates(model, available_bytes)


def _training_estimates(model: str, available_bytes: int) -> Iterator[Finding]:
    from openautoglm.checkpoint.hub import resolve_config
    from openautoglm.errors import OpenAutoGLMError
    from openautoglm.families.registry import describe
    from openautoglm.memory.training import TrainingMethod, TrainingSetup, training_bytes

    try:
        spec = describe(resolve_config(model)[0])
    except OpenAutoGLMError:
        return  # the model's own finding says why
    for method in TrainingMethod:
        tokens = min(1024, spec.max_positions)
        setup = TrainingSetup(method=method, batch_size=1, seq_tokens=tokens, checkpointing=True)
        peak_bytes = training_bytes(spec, setup).peak_bytes
        fits = peak_bytes <= available_bytes
        yield finding(
            f"trains with {method}",
            f"{'yes' if fits else 'no'}: {format_bytes(peak_bytes)} for one sequence of {tokens:,} tokens, "
            f"checkpointed; {format_bytes(available_bytes)} available",
            f"openautoglm plan {model} --train {method} --checkpointing shows the parts"
            if fits
            else "try --train qlora, a shorter --seq, --optimizer adamw8bit, or a larger machine",
            OK if fits else WARNING,
        )
