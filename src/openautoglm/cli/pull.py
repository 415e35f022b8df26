"""`openautoglm pull`: a model into the Hugging Face cache, resumed and verified."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("pull")
@click.argument("model")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit; the same as MODEL@NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull_command(model: str, revision: str | None, as_json: bool) -> None:
    """Download MODEL (org/name[@revision]) into the Hugging Face cache, and print where it is.

    Only configuration, tokenizer, chat template and safetensors weights are fetched, and checked against the hub's
    hashes. What an interrupted pull has fetched is kept: run it again to go on. HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE are honoured.
    """
    from openautoglm.checkpoint.hub import pull
    from openautoglm.cli.progress import LoadProgress
    from openautoglm.units import format_bytes

    try:
        with LoadProgress() as progress:
            pulled = pull(model, revision=revision, progress=progress)
    except KeyboardInterrupt:
        click.echo("what has arrived is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **asdict(pulled), "path": str(pulled.path)}, indent=2))
        return
    click.echo(
        f"{pulled.name}@{pulled.revision} ({pulled.commit[:12]}): {pulled.num_files} files, "
        f"{format_bytes(pulled.total_bytes)}, verified",
        err=True,
    )
    click.echo(str(pulled.path))
