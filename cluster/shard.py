"""`tessera shard`: the shard stage, its single tasks in this process, the others on Ray."""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cluster.screen import IncompleteError, JsonFile, Resume, bar, say
from cluster.tasks import run_on_ray
from pipeline.config import ConfigError, load
from pipeline.remote.location import is_remote, local_path, redact_url

if TYPE_CHECKING:
    from pipeline.ingest.folder import ShardRequest
    from pipeline.ingest.stage import Progress, ShardProgress
    from pipeline.shards.manifest import Ledger, Manifest


def shard(  # noqa: PLR0913 - one for each option
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders, searched recursively, archives (tar, zip, WARC, Parquet, Arrow, "
            "JSON lines, WebDatasets) and patterns of them, local or at a URL; or a YAML file that "
            "lists such sources, see configs/shard/. Labels and captions are kept.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="New folder for the shards, or its URL, with --scratch."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with limits and filters; configs/demo/shard.yaml lists them."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only inputs whose path below SRC matches one."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="No inputs whose path below SRC matches one."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, all of whose machines see SRC and OUT."),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where shards for a URL are made, before they are copied there."
        ),
    ] = None,
    resume: Resume = False,
    json_file: JsonFile = None,
) -> None:
    """Make WebDataset shards, with an index and a hash for every image.

    Every input is accepted, quarantined (no intact image), filtered (by a rule) or a duplicate; the
    last line counts each, and OUT/ledger.jsonl names every excluded input.

    Example: tessera shard crawl/ --out shards/
    """
    from pipeline.atomic import write_json
    from pipeline.ingest.config import ShardConfig
    from pipeline.ingest.folder import ShardRequest
    from pipeline.ingest.sources.source_list import parse_sources

    started = time.monotonic()
    settings = load(ShardConfig, config) if config else ShardConfig()
    folder = folder_for(out, scratch)
    request = ShardRequest(folder, parse_sources(sources, include or (), exclude or ()), settings)
    url = None if scratch is None else out
    manifest = run_shard(request, Console(), resume=resume, address=address, publish_to=url)
    if json_file:
        write_json(json_file, _as_json(manifest, time.monotonic() - started))


def folder_for(out: str, scratch: Path | None) -> Path:
    """Return the folder that shards are made in: `out`, or `scratch` if `out` is a URL.

    Raises:
        ConfigError: A URL without scratch, or that cannot be written to; a folder with scratch.
    """
    if not is_remote(out):
        if scratch is not None:
            raise ConfigError(f"scratch (={scratch}) is for URLs, out (={out}) is a folder.")
        return local_path(out)
    if scratch is None:
        raise ConfigError(
            f"out (={redact_url(out)}) is a URL: give a folder for the shards until they are "
            "copied, with space for all of them: --scratch DIR."
        )
    from pipeline.shards.publish import check_target

    check_target(out)
    return scratch


def run_shard(
    request: "ShardRequest",
    console: Console,
    *,
    resume: bool,
    address: str | None = None,
    publish_to: str | None = None,
) -> "Manifest":
    """Shard the sources of `request`, the ledger of each and then of all as the last lines.

    Args:
        request: What is made, and where.
        console: Where progress goes.
        resume: Whether the folder may hold an earlier run.
        address: A Ray cluster; None for this machine.
        publish_to: URL that the finished shards are copied to.
    """
    from pipeline.shards.publish import publish

    throughput = Throughput()
    with bar(console, "shard", counts=True) as line:

        def show(progress: "ShardProgress") -> None:
            note = (
                f"{progress.phase}: {progress.accepted} accepted, "
                f"{progress.quarantined} quarantined, {progress.filtered} filtered, "
                + (f"{progress.duplicate} duplicate" if progress.phase == "write" else "")
                + (throughput.describe(progress.done) if progress.phase == "examine" else "")
            )
            line.update(progress.done, progress.total, note.rstrip(", "))

        manifest = build_shards(request, resume=resume, address=address, on_progress=show)
    if publish_to is not None:
        with bar(console, "publish", counts=False) as line:
            publish(request.out, publish_to, on_progress=line.update)
        say(console, f"publish: {redact_url(publish_to)}")
    if len(manifest.sources) > 1:
        for name, ledger in manifest.sources.items():
            say(console, f"{name}: {ledger.describe()}")
    say(console, manifest.describe())
    return manifest


def build_shards(
    request: "ShardRequest", *, resume: bool, address: str | None, on_progress: "Progress"
) -> "Manifest":
    """Turn sources into shards; the bytes do not depend on the number of workers.

    Images travel from disk to disk in the workers; only paths and counts pass through Ray. Stopped
    at any moment, it leaves only whole parts and shards, and `resume` continues from them.

    Args:
        request: What is made, and where; on a cluster, a folder that all its machines share.
        resume: Whether the folder may hold an earlier run with equal settings.
        address: A running Ray cluster; None starts a local Ray if more than one task is due.
        on_progress: Called after every part and shard.

    Raises:
        ConfigError: A source, the folder or the cluster cannot be used, or no image is usable.
        IncompleteError: Parts or shards failed for another reason; names them.
    """
    from pipeline.ingest.parts import close_sandbox
    from pipeline.ingest.stage import UnfinishedError, make_shards
    from pipeline.shards.third_party.indexing import run_here

    def run(
        call: Callable[[Any], Any], items: Sequence[Any]
    ) -> Generator[tuple[int, Any], None, None]:
        if len(items) <= 1:  # Nothing to distribute: Ray would only have to start.
            return run_here(call, items)
        from cluster.session import ensure_ray

        ensure_ray(address)
        return run_on_ray(call, items)

    try:
        return make_shards(request, run, resume=resume, on_progress=on_progress)
    except UnfinishedError as error:
        raise IncompleteError(str(error)) from error
    finally:
        close_sandbox()


class Throughput:
    """Images per second since the first update, which counts Ray's start and resumed work."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def describe(self, done: int) -> str:
        """Return the throughput as text, empty at the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        images, seconds = done - self._first[0], now - self._first[1]
        return f"{images / seconds:.0f} images/s" if images and seconds else ""


def ledger_json(ledger: "Ledger") -> dict[str, Any]:
    """Return a ledger's totals, and the counts by reason."""
    return {
        "inputs": ledger.inputs,
        "accepted": ledger.accepted,
        "quarantined": ledger.num_quarantined,
        "filtered": ledger.num_filtered,
        "duplicate": ledger.duplicate,
        "near_duplicate": ledger.near_duplicate,
        "reasons": {"quarantined": ledger.quarantined, "filtered": ledger.filtered},
    }


def _as_json(manifest: "Manifest", seconds: float) -> dict[str, Any]:
    ledger = manifest.ledger
    return {
        **ledger.model_dump(mode="json"),
        "notes_dropped": manifest.notes_dropped,
        "seconds": seconds,
        "images_per_s": ledger.inputs / seconds,
        "sources": {name: one.model_dump(mode="json") for name, one in manifest.sources.items()},
    }
