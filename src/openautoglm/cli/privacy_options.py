"""The options of `serve` that say what is kept from the model and the log."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from openautoglm.settings import REDACT_KINDS, REDACT_MODES

_OPTIONS = (
    click.option(
        "--redact",
        type=click.Choice(REDACT_MODES),
        default="off",
        show_default=True,
        help="Private data in prompts and the log: replace it by its kind, or by a keyed hash, or refuse the request.",
    ),
    click.option(
        "--redact-kinds",
        metavar="KINDS",
        help=f"What to look for, separated by commas: {', '.join(REDACT_KINDS)} (all).",
    ),
    click.option("--redact-answers", is_flag=True, help="Redact what the model writes, too."),
    click.option(
        "--redact-key",
        envvar="OPENAUTOGLM_REDACT_KEY",
        metavar="KEY",
        help="Key of --redact hash, so that hashes stay the same over restarts; better in OPENAUTOGLM_REDACT_KEY.",
    ),
)


def privacy_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `privacy`."""

    @functools.wraps(command)
    def with_privacy(
        *args: object,
        redact: str,
        redact_kinds: str | None,
        redact_answers: bool,
        redact_key: str | None,
        **kwargs: object,
    ) -> object:
        from openautoglm.errors import ConfigError
        from openautoglm.serve.privacy import PrivacyOptions
        from openautoglm.settings import parse_redact_kinds
        from openautoglm.text.private_data import Kind
        from openautoglm.text.redact import Mode, RedactionOptions

        names = REDACT_KINDS if redact_kinds is None else parse_redact_kinds(redact_kinds)
        if redact == "off":
            if redact_answers or redact_kinds is not None:
                raise ConfigError("--redact-answers and --redact-kinds need --redact mask, hash or block")
            return command(*args, privacy=PrivacyOptions(), **kwargs)
        if redact_key and redact != "hash":
            raise ConfigError("--redact-key is the key of --redact hash: leave it out")
        kinds = frozenset(Kind(name) for name in names)
        redaction = RedactionOptions(mode=Mode(redact), kinds=kinds)
        if redact_key:
            redaction = RedactionOptions(mode=Mode(redact), kinds=kinds, key=redact_key.encode())
        return command(*args, privacy=PrivacyOptions(redaction=redaction, answers=redact_answers), **kwargs)

    for option in reversed(_OPTIONS):
        with_privacy = option(with_privacy)
    return with_privacy
