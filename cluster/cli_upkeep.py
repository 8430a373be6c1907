"""The commands that look at finished shards and keep them: inspect, verify, repair, ..."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from cluster.cli_options import JsonFile
from cluster.errors import clear_errors

Manifest = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST", help="A folder of shards or the manifest in it, as a path or a URL."
    ),
]
Out = Annotated[Path, typer.Option(help="New folder for the manifest.")]


def inspect(
    manifest: Manifest,
    page: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Where the page goes; beside the manifest without it."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show what a set of shards holds: counts, histograms, contact sheets; as tables and a page.

    Example: tessera inspect shards/
    """
    with clear_errors():
        from cluster.inspect_page import run_inspect

        run_inspect(manifest, page, Console(), json_file=json_file)


def verify(
    manifest: Manifest,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image, too, as strictly as the gate does.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Check every byte of finished shards against manifest and indexes.

    Every problem is named with shard, key and byte; the exit code is 1 where there is one.

    Example: tessera verify shards/ --deep
    """
    with clear_errors():
        from cluster.upkeep import run_verify

        found = run_verify(manifest, Console(), deep=deep, json_file=json_file)
        raise typer.Exit(0 if found.ok else 1)


def repair(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="New folder for the shards that are whole.")],
    json_file: JsonFile = None,
) -> None:
    """Make a new set of all that is whole; every sample that is not is listed.

    Whole shards are linked, damaged ones written anew without the samples that are lost. The old
    set stays as it is.

    Example: tessera repair shards/ --out mended/
    """
    with clear_errors():
        from cluster.upkeep import run_repair

        run_repair(manifest, out, Console(), json_file=json_file)


def purge(
    manifest: Manifest,
    hashes: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A hash in each line: of an original file (xxh128sum FILE), the key of a sample, "
            "or of a stored image (xxh3, 64 bit).",
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Let training never show samples again: for opt-outs and lists of what must go.

    Writes tombstones.jsonl beside the manifest, which every run obeys from its next epoch on;
    OUT/quarantine.jsonl of a run tells where another sample took the place. To remove the bytes,
    too, shard again without the sources.

    Example: tessera purge shards/ --hashes removed.txt
    """
    with clear_errors():
        from cluster.upkeep import run_purge

        run_purge(manifest, hashes, Console(), json_file=json_file)


def merge(
    manifests: Annotated[
        list[str],
        typer.Argument(metavar="MANIFEST...", help="Folders of shards, manifests, or their URLs."),
    ],
    out: Out,
) -> None:
    """Make one manifest of several; the shards stay where they lie.

    To read sets in fixed shares instead, name them under data.mixture in a run's config.

    Example: tessera merge crawl-1/ crawl-2/ --out all/
    """
    with clear_errors():
        from cluster.upkeep import run_merge

        run_merge(manifests, out, Console())


def split(
    manifest: Manifest,
    parts: Annotated[
        list[str], typer.Argument(metavar="NAME=SHARE...", help="As train=0.9 val=0.1.")
    ],
    out: Annotated[Path, typer.Option(help="New folder; gets a folder for each part.")],
    seed: Annotated[int, typer.Option(help="Another one gives other parts.")] = 0,
) -> None:
    """Give every shard to one of several parts; the shards stay where they lie.

    Shards are fair samples of all images, so that parts are too, met to the size of a shard.

    Example: tessera split shards/ train=0.9 val=0.1 --out parts/
    """
    with clear_errors():
        from cluster.upkeep import run_split

        run_split(manifest, parts, out, seed, Console())
