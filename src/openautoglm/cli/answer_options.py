"""The options of `serve` that say how answers are taken apart."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from openautoglm.settings import REASONING_PARSERS, TOOL_PARSERS

_OPTIONS = (
    click.option(
        "--tool-parser",
        type=click.Choice(TOOL_PARSERS),
        default=TOOL_PARSERS[0],
        show_default=True,
        help="How the model writes tool calls; auto: as its chat template says.",
    ),
    click.option(
        "--reasoning-parser",
        type=click.Choice(REASONING_PARSERS),
        default=REASONING_PARSERS[0],
        show_default=True,
        help="think: return what stands in <think>…</think> apart from the content.",
    ),
)


def answer_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `answers`."""

    @functools.wraps(command)
    def with_answers(*args: object, tool_parser: str, reasoning_parser: str, **kwargs: object) -> object:
        from openautoglm.serve.answer_options import AnswerOptions
        from openautoglm.text.tools import ToolFormat

        wanted = None if tool_parser == TOOL_PARSERS[0] else ToolFormat(tool_parser)
        splits = reasoning_parser != REASONING_PARSERS[0]
        return command(*args, answers=AnswerOptions(tool_format=wanted, splits_reasoning=splits), **kwargs)

    for option in reversed(_OPTIONS):
        with_answers = option(with_answers)
    return with_answers
