"""`openautoglm`: the command group. Commands are imported only when they are used, so that --help stays fast."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from openautoglm import __version__
from openautoglm.errors import OpenAutoGLMError
from openautoglm.log import LOG_FORMATS, announce, configure_logging, get_logger
from openautoglm.settings import command_defaults, resolve_settings

INTERRUPTED_EXIT_CODE = 130

# Name and one-line help; a command lives in openautoglm.cli.<name> as <name>_command.
_COMMANDS = {
    "run": "Chat with a model, or continue one prompt, in this terminal.",
    "digest": "Summarise a document of any length.",
    "serve": "Serve a model behind an OpenAI-compatible API.",
    "plan": "Show what a model will take in memory, before loading it.",
    "explain": "Tell where the time of a server's request went.",
    "top": "Watch a running server: memory map, ladder, requests, speed.",
    "profile": "Sample which functions a running server spends its time in.",
    "bench": "Measure speed and memory beside this machine's roofline.",
    "simulate": "Replay a trace of traffic against the scheduler, without a model.",
    "doctor": "Check this machine, with advice for each finding.",
    "ls": "List the models in the local cache.",
    "pull": "Download a model into the local cache.",
    "keys": "Make, list and revoke API keys of servers.",
    "audit": "Check the audit log of a server.",
    "config": "Show settings and where each value comes from.",
    "completion": "Print the completion script of a shell.",
}


class LazyGroup(click.Group):
    """A group whose commands are listed from a table and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its command."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"openautoglm.cli.{cmd_name}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Output whose reader left (for example `| head`) ends it, and is no error of ours."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered has nowhere to go, which the interpreter would report at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="openautoglm")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="Least severe log records to show on stderr.",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    help="Records as text, or each as a line of JSON with the ids of its request (text).",
)
@click.pass_context
def cli(context: click.Context, log_level: str, log_format: str | None) -> None:
    """Fit an open-weight language model into the memory you have, make it fast there, and keep it up.

    MODEL is a checkpoint directory, a Hugging Face id (org/name[:quant][@revision]), or "demo" for the embedded
    model. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit the memory, 130 interrupted.
    """
    settings = resolve_settings({"log_format": log_format})
    chosen = next(str(setting.value) for setting in settings if setting.name == "log_format")
    configure_logging(log_level, chosen)
    context.default_map = command_defaults(settings, tuple(_COMMANDS))


def main() -> None:
    """Run the command line; turn this package's errors into one clear line and an exit code."""
    # NumPy's BLAS starts a thread for each core, which spins for some 70 ms of this start and of each process that is
    # started here; nothing of this package multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = INTERRUPTED_EXIT_CODE
    except OpenAutoGLMError as error:
        _complain(error)
        code = error.exit_code
    except OSError as error:
        # The system refused: a full disk, a file that may not be read. Its own words say which.
        get_logger(__name__).debug("the system refused", exc_info=True)
        _complain(error)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _complain(error: Exception) -> None:
    announce(f"error: {error}", level=logging.ERROR)
