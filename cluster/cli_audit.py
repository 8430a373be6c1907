"""The command `tessera audit`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli_options import ConfigFile, JsonFile, Overrides
from cluster.errors import clear_errors


def audit(  # noqa: PLR0913 - one for each option
    config: ConfigFile,
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST", help="A folder of shards, the manifest in it, or its URL."
        ),
    ],
    overrides: Overrides = None,
    images: Annotated[
        int,
        typer.Option(min=1, help="Images to look at, at most; each is looked at once."),
    ] = 2000,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for audit.html and audit.json.")
    ] = Path("audit"),
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Plant known bugs, too, turn countermeasures off, and show that each is caught.",
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Ask whether the pretext can be won by low-level statistics instead of by the picture.

    Simple probes look at what the loader really emits, on images of the shards and on images that
    show nothing. The exit code is 1 where a shortcut is open, or where the pipeline itself gives
    answers away.

    Example: tessera audit configs/demo/pretrain.yaml shards/ --images 500
    """
    with clear_errors():
        from cluster.audit import WIDTH, AuditRequest, audit_shards, source_of

        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        wanted = AuditRequest(images=images, prove=prove, out=out, json_file=json_file)
        if not audit_shards(source_of(config, manifest, overrides or []), wanted, console):
            raise typer.Exit(1)
