"""How answers are taken apart."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.text.tools import ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """Calls are read in `tool_format`, None for that of the chat template; `splits_reasoning` sets reasoning apart."""

    tool_format: ToolFormat | None = None
    splits_reasoning: bool = False
