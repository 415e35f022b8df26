"""`openautoglm run`: the plan first, then a chat in the terminal, or one prompt continued."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.load_options import load_options
from openautoglm.cli.model_argument import model_argument
from openautoglm.cli.receipt_option import receipt_option
from openautoglm.cli.reuse_options import speculation_option
from openautoglm.errors import ConfigError, InvalidRequestError
from openautoglm.spec.goal import Goal
from openautoglm.spec.plan import Plan
from openautoglm.spec.reuse import Speculation


@click.command("run")
@model_argument()
@click.argument("prompt", required=False)
@goal_options
@load_options
@speculation_option
@click.option("--system", metavar="TEXT", help="System message of the chat.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer.")
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-p", type=float, help="Keep the most likely tokens up to this mass.")
@click.option("--top-k", type=int, help="Keep this many most likely tokens; 0 is all.")
@click.option("--seed", type=int, help="Same seed, same answer.")
@receipt_option
@click.option("--quiet", is_flag=True, help="Print neither plan nor receipt.")
def run_command(
    model: str,
    prompt: str | None,
    goal: Goal,
    cache: str | None,
    strict: bool,
    speculation: Speculation,
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    receipt: Path | None,
    quiet: bool,
) -> None:
    """Run MODEL here: answer PROMPT (or standard input), or chat when there is neither.

    The answer goes to stdout; the memory plan, the receipt and progress go to stderr. In a chat, Ctrl-C ends an
    answer, /clear forgets the conversation, /bye or Ctrl-D ends.
    """
    from openautoglm.cli.conversation import converse, show
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.llm import LLM, with_overrides
    from openautoglm.spec.sampling import SamplingParams

    wishes = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    try:
        # A load may take minutes: what is wrong anyhow is said before.
        with_overrides(SamplingParams(), **wishes)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from error
    prompt = _given_prompt(prompt, raw=raw)
    with (
        LoadProgress() as progress,
        LLM.open(
            model,
            goal,
            on_plan=None if quiet else _show_plan,
            progress=progress,
            chat=not raw,
            cache=cache,
            strict=strict,
            speculation=speculation,
        ) as llm,
    ):
        progress.finish()
        if not quiet:
            _show(llm.receipt)
        if receipt is not None:
            receipt.write_text(llm.receipt_json + "\n", encoding="utf-8")
        sampling = with_overrides(llm.default_sampling, **wishes)
        if prompt is None:
            converse(llm, sampling, system=system, raw=raw)
            return
        messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        show(llm.stream(prompt, sampling) if raw else llm.stream(messages, sampling))


def _given_prompt(prompt: str | None, *, raw: bool) -> str | None:
    """Return the prompt of the command line or of standard input, None for a conversation; `ConfigError` for no text.

    Of standard input a chat drops the newline at the end, which `echo` and editors add.
    """
    if prompt is None:
        if sys.stdin is None:
            raise ConfigError("there is no PROMPT, and standard input is closed: give one of them")
        if sys.stdin.isatty():
            return None
        data = sys.stdin.buffer.read()
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"standard input is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}"
            ) from error
        prompt = prompt if raw else prompt.rstrip("\r\n")
    elif any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ConfigError("PROMPT is not UTF-8 text: check the terminal's encoding, or pipe it in")
    if not prompt.strip() and not (raw and prompt):
        raise ConfigError("the prompt is empty: give PROMPT, or text on standard input")
    return prompt


def _show(table: str) -> None:
    click.echo(table, err=True)


def _show_plan(plan: Plan) -> None:
    from openautoglm.planner.explain import plan_table

    _show(plan_table(plan))
