"""`openautoglm digest`: the summary of a document that may be longer than the model's context."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.load_options import load_options
from openautoglm.errors import ConfigError, InvalidRequestError
from openautoglm.spec.goal import Goal
from openautoglm.spec.plan import Plan
from openautoglm.units import MIB, format_bytes

MAX_FILE_BYTES = 8 * MIB


@click.command("digest")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--model", default="demo", show_default=True, help="Model that summarises: a directory or a name.")
@goal_options
@load_options
@click.option("--instruction", metavar="TEXT", help="What to do with each part, instead of summarising it.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=160, show_default=True, help="Longest summary of a part."
)
@click.option(
    "--overlap", type=click.IntRange(min=0), default=0, show_default=True, help="Tokens of the part before in each."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, help="Same seed, same summary.")
@click.option("--quiet", is_flag=True, help="Print neither plan nor progress.")
def digest_command(
    file: Path,
    model: str,
    goal: Goal,
    cache: str | None,
    strict: bool,
    instruction: str | None,
    max_tokens: int,
    overlap: int,
    temperature: float,
    seed: int | None,
    quiet: bool,
) -> None:
    """Summarise FILE ("-": standard input), UTF-8 text of any length: parts of it first, then their summaries.

    The document is cut at sections, paragraphs and sentences into parts that fit the context. The summary goes to
    stdout, plan and progress go to stderr.
    """
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.cli.summarise import Instructions, Summariser, instructions_for
    from openautoglm.llm import LLM, with_overrides
    from openautoglm.spec.sampling import SamplingParams

    wishes = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    try:
        with_overrides(SamplingParams(), **wishes)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from error
    text = _read(file)
    instructions = instructions_for(text)
    if instruction is not None:
        instructions = Instructions(part=instruction, merge=instruction)
    with (
        LoadProgress() as progress,
        LLM.open(
            model, goal, on_plan=None if quiet else _show_plan, progress=progress, chat=True, cache=cache, strict=strict
        ) as llm,
    ):
        progress.finish()
        summariser = Summariser(
            llm,
            with_overrides(llm.default_sampling, **wishes),
            instructions,
            summary_tokens=max_tokens,
            overlap_tokens=overlap,
            on_progress=_no_progress if quiet else _show_progress,
        )
        click.echo(summariser.summarise(text))


def _read(file: Path) -> str:
    """Return the document; raise `ConfigError` for one that is empty, too large, or not text."""
    if str(file) == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} is larger than {format_bytes(MAX_FILE_BYTES)}: digest it in parts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; convert it first, such "
            "as with iconv -f GB18030 -t UTF-8"
        ) from error
    if not text.strip():
        raise ConfigError(f"{file} has no text to summarise")
    return text


def _show_plan(plan: Plan) -> None:
    from openautoglm.planner.explain import plan_table

    click.echo(plan_table(plan), err=True)


def _show_progress(level: int, num_done: int, num_all: int) -> None:
    """Tell how far it is: on one line of a terminal, or in a log with a line each."""
    what = "parts" if level == 1 else "summaries merged"
    terminal = sys.stderr.isatty()
    if terminal or num_done:
        back = "\r" if terminal else ""
        click.echo(f"{back}{num_done} of {num_all} {what}", err=True, nl=num_done == num_all or not terminal)


def _no_progress(_level: int, _num_done: int, _num_all: int) -> None:
    """Say nothing."""
