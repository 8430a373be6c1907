"""The command `tessera preview`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli_options import ConfigFile, Overrides
from cluster.errors import clear_errors


def preview(
    config: ConfigFile,
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST", help="A folder of shards, the manifest in it, or its URL."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for page and pictures.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="How many images are drawn.")] = 4,
) -> None:
    """Draw what the network sees of some images, and what every countermeasure does to them.

    The loader makes epoch 0, step 0 of a run with this config on these shards. Of the config,
    pretext, order, seed and data are read.

    Example: tessera preview configs/demo/pretrain.yaml runs/demo/shards --out preview/
    """
    with clear_errors():
        from cluster.preview import print_page, run_preview

        page = run_preview(config, overrides or [], manifest, out, images)
        print_page(page, Console())
