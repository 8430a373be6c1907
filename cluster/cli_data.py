"""The commands `tessera data ...`."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from cluster.errors import clear_errors

app = typer.Typer(no_args_is_help=True, help="Get labelled images for the transfer.")


@app.callback()
def _data() -> None:
    """Keep `get` a command of its own while it is the only one."""


@app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="caltech101, imagenette, cifar10, cifar100, flowers102, pets, voc2007 or voc2012.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the shards train and test; of caltech101, for its shards."),
    ],
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder with an unpacked copy, as torchvision lays it out; downloads nothing."
        ),
    ] = None,
) -> None:
    """Make labelled shards of a public data set, with its official split.

    Downloads go to OUT-files and may be removed when the shards are there. Called again, it goes on
    where it stopped.

    Example: tessera data get voc2007 --out data/voc2007
    """
    with clear_errors():
        from typing import cast, get_args

        from cluster.get_data import get_data
        from pipeline.config import ConfigError
        from training.transfer.images.known_sets import SetName

        known = get_args(SetName)
        if name not in known:
            raise ConfigError(f"name (={name}) must be one of {', '.join(known)}.")
        get_data(cast(SetName, name), out, Console(), source=source)
