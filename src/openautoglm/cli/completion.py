"""`openautoglm completion`: the script that teaches a shell to complete this command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM_NAME = "openautoglm"
# What click's own start-up code looks for in the environment.
COMPLETION_VARIABLE = "_OPENAUTOGLM_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash: add to ~/.bashrc                eval "$(openautoglm completion bash)"
    zsh:  add to ~/.zshrc                 eval "$(openautoglm completion zsh)"
    fish: openautoglm completion fish > ~/.config/fish/completions/openautoglm.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    completion = completion_class(ctx.find_root().command, {}, PROGRAM_NAME, COMPLETION_VARIABLE)
    click.echo(completion.source())
