"""The shapes that can be compared, and their checkpoints of random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKE_CHECKPOINT = ROOT / "tools" / "make_checkpoint.py"
# What tools/make_checkpoint.py takes as --shape-from: a config file of this directory, or a published model's name.
SOURCES = {
    "tinyllama-1.1b": str(Path(__file__).parent / "tinyllama-1.1b.json"),
    "glm-edge-1.5b": "glm-edge-1.5b-chat",
    "qwen3-0.6b": "Qwen3-0.6B",
    "glm-4-9b": "GLM-4-9B-0414",
}
DEFAULT_SHAPE = "tinyllama-1.1b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape's checkpoint on disk, and where the peers' forms of it are kept."""

    name: str
    checkpoint: Path
    models: Path

    def config(self) -> dict[str, object]:
        """Return the checkpoint's config.json."""
        config: dict[str, object] = json.loads((self.checkpoint / "config.json").read_text())
        return config


def prepare_shape(name: str, cache: Path) -> Shape:
    """Make the checkpoint unless it is there. Takes two bytes of disk per parameter."""
    checkpoints, models = cache / "checkpoints", cache / "models" / name
    checkpoints.mkdir(parents=True, exist_ok=True)
    models.mkdir(parents=True, exist_ok=True)
    if not (checkpoints / name).exists():
        command = [sys.executable, str(MAKE_CHECKPOINT), name, "--shape-from", SOURCES[name]]
        subprocess.run([*command, "--output", str(checkpoints)], check=True, stdout=sys.stderr)
    return Shape(name=name, checkpoint=checkpoints / name, models=models)
