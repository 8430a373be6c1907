"""The shard stage as a person runs it: behind a bar, with the invariant as its last line."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.build_shards import build_shards
from cluster.screen import bar
from pipeline.config import ConfigError
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.stage import ShardProgress
from pipeline.remote.location import is_remote, local_path, redact_url
from pipeline.shards.manifest import Ledger, Manifest
from pipeline.shards.publish import check_target, publish


def folder_for(out: str, scratch: Path | None) -> Path:
    """Return the folder that shards are made in: `out`, or `scratch` where that is a URL.

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
            "copied, with room for all of them: --scratch DIR."
        )
    check_target(out)
    return scratch


def run_shard(
    job: ShardRequest,
    console: Console,
    *,
    resume: bool,
    address: str | None = None,
    publish_to: str | None = None,
) -> Manifest:
    """Shard the sources of `job`; prints the invariant as the last line, before it each source's.

    Args:
        job: What is made, and where.
        console: Where progress goes.
        resume: Whether the folder may hold an earlier run.
        address: Of a Ray cluster; None for this machine.
        publish_to: URL that the finished shards are copied to.
    """
    pace = Throughput()
    with bar(console, "shard", counts=True) as line:

        def show(progress: ShardProgress) -> None:
            note = (
                f"{progress.phase}: {progress.accepted} accepted, "
                f"{progress.quarantined} quarantined, {progress.filtered} filtered, "
                + (f"{progress.duplicate} duplicate" if progress.phase == "write" else "")
                + (pace.describe(progress.done) if progress.phase == "examine" else "")
            )
            line.update(progress.done, progress.total, note.rstrip(", "))

        manifest = build_shards(job, resume=resume, address=address, on_progress=show)
    if publish_to is not None:
        with bar(console, "publish", counts=False) as line:
            publish(job.out, publish_to, on_progress=line.update)
        console.print(f"publish: {redact_url(publish_to)}", highlight=False, soft_wrap=True)
    if len(manifest.sources) > 1:
        for name, ledger in manifest.sources.items():
            text = f"{name}: {ledger.describe()}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(manifest.ledger.describe(), highlight=False, soft_wrap=True)
    return manifest


class Throughput:
    """Speed since the first images were done: Ray's start, or what a resumed run finds, is none."""

    def __init__(self) -> None:
        self._from: tuple[int, float] | None = None

    def describe(self, done: int) -> str:
        """Say how fast the images became `done`; nothing of the first."""
        now = time.monotonic()
        if self._from is None:
            self._from = done, now
        images, seconds = done - self._from[0], now - self._from[1]
        return f"{images / seconds:.0f} images/s" if images and seconds else ""


def shard_json(manifest: Manifest, seconds: float) -> dict[str, Any]:
    """Return the ledger with counts by reason, of all and of each source, and the speed."""
    ledger = manifest.ledger
    return {
        **ledger.model_dump(mode="json"),
        "seconds": seconds,
        "images_per_s": ledger.inputs / seconds,
        "sources": {name: one.model_dump(mode="json") for name, one in manifest.sources.items()},
    }


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """Return totals, and beside them the counts by reason."""
    return {
        "inputs": ledger.inputs,
        "accepted": ledger.accepted,
        "quarantined": ledger.num_quarantined,
        "filtered": ledger.num_filtered,
        "duplicate": ledger.duplicate,
        "near_duplicate": ledger.near_duplicate,
        "reasons": {"quarantined": ledger.quarantined, "filtered": ledger.filtered},
    }
