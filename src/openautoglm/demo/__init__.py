"""The embedded demo model: a small GLM-4-architecture checkpoint that makes `openautoglm run demo` work offline.

The directory is an ordinary Hugging Face checkpoint; README.md in it is the model card.
"""

from __future__ import annotations

from pathlib import Path


def checkpoint_directory() -> Path:
    """The installed directory that holds `config.json`, `tokenizer.json` and `model.safetensors`."""
    return Path(__file__).resolve().parent
