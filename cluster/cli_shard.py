"""`tessera shard`."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from cluster.cli_options import JsonFile, Resume
from cluster.errors import clear_errors


def shard(  # noqa: PLR0913 - typer makes an option of each.
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders, searched through all levels, archives (tar, zip, WARC, Parquet, Arrow, "
            "JSON lines, WebDatasets) and patterns of them, here or at a URL; or a YAML file that "
            "lists such sources, see configs/shard/. Labels and captions are kept.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="New folder for the shards, or its URL, with --scratch."),
    ],
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="YAML with limits and filters; configs/demo/shard.yaml lists them."),
    ] = None,
    include: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="GLOB", help="Only inputs whose path below SRC matches one."),
    ] = None,
    exclude: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="GLOB", help="No inputs whose path below SRC matches one."),
    ] = None,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A running Ray cluster, all of whose machines see SRC and OUT."),
    ] = None,
    scratch: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Where shards for a URL are made, before they are copied there."
        ),
    ] = None,
    resume: Resume = False,
    json_file: JsonFile = None,
) -> None:
    """Make WebDataset shards, with an index and a hash for every image.

    Every input is accepted, quarantined (no whole image), filtered (by a rule) or a duplicate; the
    last line says how many of each, and OUT/ledger.jsonl names every one that was left out.

    Example: tessera shard crawl/ --out shards/
    """
    with clear_errors():
        import time

        from cluster.shard_stage import folder_for, run_shard, shard_json
        from pipeline.atomic import write_json
        from pipeline.config import load
        from pipeline.ingest.config import ShardConfig
        from pipeline.ingest.folder import ShardRequest
        from pipeline.ingest.sources.source_list import parse_sources

        started = time.monotonic()
        settings = load(ShardConfig, config) if config else ShardConfig()
        folder = folder_for(out, scratch)
        job = ShardRequest(folder, parse_sources(sources, include or (), exclude or ()), settings)
        url = None if scratch is None else out
        manifest = run_shard(job, Console(), resume=resume, address=address, publish_to=url)
        if json_file:
            write_json(json_file, shard_json(manifest, time.monotonic() - started))
