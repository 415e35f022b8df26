"""`openautoglm run`: the plan first, then a chat in the terminal, or one prompt continued."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.spec.goal import Goal
from openautoglm.spec.plan import Plan


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@goal_options
@click.option("--system", metavar="TEXT", help="System message of the chat.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer.")
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-p", type=float, help="Keep the most likely tokens up to this mass.")
@click.option("--top-k", type=int, help="Keep this many most likely tokens.")
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option("--quiet", is_flag=True, help="Print neither plan nor receipt.")
def run_command(
    model: str,
    prompt: str | None,
    goal: Goal,
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    quiet: bool,
) -> None:
    """Run MODEL here: continue PROMPT (or standard input), or chat when there is neither.

    The answer goes to stdout; the memory plan, the receipt and progress go to stderr.
    """
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.llm import LLM, with_overrides

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    with (
        LoadProgress() as progress,
        LLM.open(model, goal, on_plan=None if quiet else _show_plan, progress=progress) as llm,
    ):
        progress.finish()
        if not quiet:
            _show(llm.receipt)
        sampling = with_overrides(
            llm.default_sampling,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        history: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
        if prompt is not None:
            request: str | list[dict[str, object]] = prompt if raw else [*history, {"role": "user", "content": prompt}]
            _print(llm.stream(request, sampling))
            return
        for line in _lines():
            history.append({"role": "user", "content": line})
            answer = _print(llm.stream(line if raw else history, sampling))
            history.append({"role": "assistant", "content": answer})


def _show(table: str) -> None:
    click.echo(table, err=True)


def _show_plan(plan: Plan) -> None:
    from openautoglm.planner.explain import plan_table

    _show(plan_table(plan))


def _print(pieces: Iterator[str]) -> str:
    """Write pieces to stdout as they come; return the whole."""
    text: list[str] = []
    for piece in pieces:
        text.append(piece)
        click.echo(piece, nl=False)
    click.echo()
    return "".join(text)


def _lines() -> Iterator[str]:
    """Yield what the user types, until an empty end of input or /bye."""
    click.echo("Type a message; /bye or Ctrl-D ends.", err=True)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if line.strip() == "/bye":
            return
        if line.strip():
            yield line
