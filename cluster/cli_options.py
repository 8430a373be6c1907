"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Optional

import typer

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time on Python 3.10
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Replace keys of the config: train.max_minutes=5"
    ),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on in a folder that is not empty.")]
JsonFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--json", metavar="FILE", help="Write the result as JSON, too."),
]
