"""Open-AutoGLM: plans, loads and serves open-weight language models in the memory there is."""

from __future__ import annotations

__version__ = "0.1.0"
