"""The command `tessera explain`."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from cluster.cli_options import JsonFile, Overrides
from cluster.errors import clear_errors


def explain(  # noqa: PLR0913 - one for each option
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="The folder of a run; or a folder of shards, the manifest in it, or its URL, with "
            "--config.",
        ),
    ],
    epoch: Annotated[int, typer.Option(min=0, help="Counts from 0.")],
    overrides: Overrides = None,
    step: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Show all samples of this step of the epoch; counts from 0."),
    ] = None,
    sample: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KEY_OR_ID",
            help="Show where one sample comes in the epoch instead; key:123 is a key, 123 an id.",
        ),
    ] = None,
    rank: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="r/R", help="Show only what rank r of R ranks reads of the step."),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="CONFIG", help="A run's YAML, which names order, seed and pretext."),
    ] = None,
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Draw every sample with its views into a new folder; see step.png."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """List what a step showed: samples, the bytes they come from, and every random draw.

    The loader itself makes the step again, so it is what the network saw, on any number of ranks.

    Example: tessera explain runs/demo --epoch 0 --step 12 --save step12/
    """
    with clear_errors():
        from cluster.explain import WIDTH, ExplainOutput, Question, run_explain, run_of

        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        run = run_of(manifest, config, overrides or [])
        question = Question(epoch, step, sample, rank)
        run_explain(run, question, ExplainOutput(save, json_file), console)
