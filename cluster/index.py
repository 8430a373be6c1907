"""`tessera index`: third-party WebDataset shards, made readable in place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.screen import IncompleteError, JsonFile, bar, say
from cluster.tasks import run_somewhere

if TYPE_CHECKING:
    from pipeline.shards.third_party.indexing import Indexed


def index(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARD...",
            help="Tars, globs, brace patterns ({000000..000009}) and folders, as paths or URLs; "
            "quote the patterns.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the manifest and the indexes.")],
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Read only the headers of the tars; images are checked when training first reads "
            "them.",
        ),
    ] = False,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Exclude damaged shards instead of refusing all."),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Make third-party WebDataset shards readable in place.

    Damaged shards are named and refused. A sample that cannot be used is quarantined with its
    reason in OUT/ledger.jsonl. Called again, it scans only what is new or changed.

    Example: tessera index 'laion/{00000..00099}.tar' --out indexes/laion
    """
    from pipeline.atomic import write_json

    indexed = run_index(inputs, out, Console(), fast=fast, skip_damaged=skip_damaged)
    if json_file:
        write_json(json_file, indexed.summary())


def run_index(
    inputs: list[str], out: Path, console: Console, *, fast: bool, skip_damaged: bool
) -> "Indexed":
    """Index shards with a bar, the ledger as the last line.

    Raises:
        ConfigError: An input, `out` or a label cannot be used, or no sample is usable.
        DamageError: Shards are damaged; names all of them.
        IncompleteError: Shards could not be read for another reason; names them.
    """
    from pipeline.shards.third_party.indexing import UnreadableError, index_shards

    with bar(console, "index", counts=True) as line:
        try:
            indexed = index_shards(
                inputs,
                out,
                run_somewhere,
                fast=fast,
                skip_damaged=skip_damaged,
                on_progress=line.update,
            )
        except UnreadableError as error:
            raise IncompleteError(str(error)) from error
    if indexed.num_damaged:
        say(console, f"index: {indexed.num_damaged} damaged shards are excluded")
    say(console, indexed.manifest.describe())
    return indexed
