"""Open-AutoGLM: plans, loads and serves open-weight language models in the memory there is.

`LLM`, `SamplingParams` and `plan` are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openautoglm.llm import LLM, plan
    from openautoglm.spec.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "plan"]

_HOMES = {
    "LLM": "openautoglm.llm",
    "plan": "openautoglm.llm",
    "SamplingParams": "openautoglm.spec.sampling",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'openautoglm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
