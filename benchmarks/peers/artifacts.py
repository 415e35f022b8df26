"""A checkpoint in the form that a peer reads, made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peers.environments import ENVIRONMENTS, InstallError, interpreter
from peers.gguf_file import write_gguf
from peers.shapes import Shape

BENCHMARKS = Path(__file__).parents[1]
INT4_OPENVINO = ("--group-size", "64", "--ratio", "1.0")
# Logits of the last token of a prompt only, as every other engine here computes them.
ONNX_OPTIONS = ("prune_lm_head=true", "hf_token=false")


def artifact(name: str, shape: Shape, cache: Path, num_threads: int) -> Path:
    """Return the file or directory called `name`, making it first if need be.

    Raises `InstallError` if the tools cannot be installed or refuse this model.
    """
    if name == "checkpoint":
        return shape.checkpoint
    target = shape.models / name
    if target.exists():
        return target
    partial = target.with_name(f"{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.unlink(missing_ok=True)
    print(f"making {name} of {shape.name}", file=sys.stderr)
    kind, _, number = name.partition("-")
    makers: dict[str, Callable[[str, Shape, Path, Path, int], None]] = {
        "gguf": _make_gguf,
        "openvino": _make_openvino,
        "onnx": _make_onnx,
    }
    makers[kind](number, shape, partial, cache, num_threads)
    partial.rename(target)
    return target


def worker_variables(num_threads: int) -> dict[str, str]:
    """Return the environment of a worker or converter: offline, this directory importable, threads bounded."""
    paths = [str(BENCHMARKS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _make_gguf(number: str, shape: Shape, target: Path, cache: Path, num_threads: int) -> None:
    if number == "BF16":
        write_gguf(shape.checkpoint, shape.config(), target)
        return
    source = artifact("gguf-BF16", shape, cache, num_threads)
    python = interpreter(ENVIRONMENTS["llama-cpp"], cache)
    command = [str(python), "-m", "peers.workers.llama_quantise", str(source), str(target), number, str(num_threads)]
    _convert(command, num_threads)


def _make_openvino(number: str, shape: Shape, target: Path, cache: Path, num_threads: int) -> None:
    python = interpreter(ENVIRONMENTS["export-openvino"], cache)
    command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(shape.checkpoint)]
    command += ["--task", "text-generation-with-past", "--weight-format", number]
    _convert([*command, *(INT4_OPENVINO if number == "int4" else ()), str(target)], num_threads)


def _make_onnx(number: str, shape: Shape, target: Path, cache: Path, num_threads: int) -> None:
    python = interpreter(ENVIRONMENTS["export-onnx"], cache)
    command = [str(python), "-m", "onnxruntime_genai.models.builder", "--input", str(shape.checkpoint)]
    command += ["--output", str(target), "--precision", number, "--execution_provider", "cpu"]
    command += ["--cache_dir", str(target.with_name("onnx-cache")), "--extra_options", *ONNX_OPTIONS]
    _convert(command, num_threads)


def _convert(command: list[str], num_threads: int) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=worker_variables(num_threads))
    if done.returncode != 0:
        raise InstallError(f"conversion failed: {' / '.join((done.stderr or done.stdout).strip().splitlines()[-3:])}")
