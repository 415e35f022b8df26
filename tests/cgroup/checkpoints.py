"""Checkpoints of random weights in any shape."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "make_checkpoint.py"


def make_checkpoint(directory: Path, shape: Mapping[str, object]) -> Path:
    """Write a checkpoint of a config's shape below `directory` and return where it stands."""
    (directory / "shape.json").write_text(json.dumps(shape))
    command = [sys.executable, str(TOOL), "model", "--output", str(directory)]
    subprocess.run([*command, "--shape-from", str(directory / "shape.json")], check=True, capture_output=True)
    return directory / "model"
