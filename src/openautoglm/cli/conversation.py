"""The conversation in a terminal: what `run` does when it is given no prompt."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from openautoglm.errors import ContextOverflowError, OverloadedError, RequestError, TemplateError

if TYPE_CHECKING:
    from openautoglm.llm import LLM
    from openautoglm.spec.sampling import SamplingParams

_PROMPT = "> "


def converse(llm: LLM, sampling: SamplingParams, *, system: str | None, raw: bool) -> None:
    """Answer what the user types until /bye or the end of input.

    Ctrl-C ends an answer, and the program where none is being written. A message that cannot be answered is said so
    and forgotten; the conversation goes on.
    """
    opening: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
    history = opening
    for line in _lines():
        if line.strip() == "/clear":
            history = opening
            continue
        asked: list[dict[str, object]] = [*history, {"role": "user", "content": line}]
        try:
            pieces = llm.stream(line, sampling) if raw else llm.stream(asked, sampling)
            answer = _answer(pieces)
        except (RequestError, TemplateError, OverloadedError) as error:
            advice = "; /clear forgets the conversation" * (
                isinstance(error, ContextOverflowError) and history != opening
            )
            click.echo(f"error: {error}{advice}", err=True)
            continue
        history = [*asked, {"role": "assistant", "content": answer}]


def show(pieces: Generator[str, None, None], stopped: Callable[[], bool] = lambda: False) -> str:
    """Write pieces to stdout as they come, until they end or `stopped`; return what was written."""
    text: list[str] = []
    with contextlib.closing(pieces):
        for piece in pieces:
            text.append(piece)
            click.echo(piece, nl=False)
            if stopped():
                break
    click.echo()
    return "".join(text)


def _answer(pieces: Generator[str, None, None]) -> str:
    with _stoppable() as stopped:
        answer = show(pieces, stopped)
        if stopped():
            click.echo("(stopped)", err=True)
        return answer


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C a wish, which is looked at between two pieces of an answer; a second one interrupts."""
    wished = False

    def wish(_signal: int, _frame: FrameType | None) -> None:
        nonlocal wished
        if wished:
            raise KeyboardInterrupt
        wished = True

    before = signal.signal(signal.SIGINT, wish)
    try:
        yield lambda: wished
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield what the user types, until the end of input or /bye."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() edit lines and remember them, where Python was built with it
    click.echo("Type a message; /clear forgets the conversation, /bye or Ctrl-D ends.", err=True)
    while True:
        try:
            line = _read_line()
        except EOFError:
            return
        if line.strip() == "/bye":
            return
        if line.strip():
            yield line


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    # Answers go to a file: the prompt must not.
    click.echo(_PROMPT, nl=False, err=True)
    return input()
