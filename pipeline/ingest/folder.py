"""The folder that shards go into: what a resume may keep, and what completes it."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.excluded import write_ledger, write_pictures
from pipeline.ingest.plan import Plan
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.source_list import SourceList
from pipeline.ingest.write import ShardReport, read_report
from pipeline.remote.location import is_remote, local_path
from pipeline.shards import manifest
from pipeline.shards.manifest import Manifest, ShardInfo, read_manifest

_COPIES = 2  # Parts and shards lie side by side until the end.
_MARGIN = 1.2
_BYTES_PER_PIXEL = 0.75
"""Of a large stored image, at most as a rule."""
_LONG_SIDES = 2
"""Long side of a stored image in short sides, at most as a rule."""


def require_disk_space(out: Path, chunks: Sequence[Chunk], config: ShardConfig) -> None:
    """Compare an estimate of what will be written with what is free where `out` lies.

    Sources whose sizes are not known, or say little (web archives hold mostly text), count nothing.

    Raises:
        ConfigError: There is too little room.
    """
    wanted = _COPIES * _MARGIN * estimate(chunks, config)
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if wanted - there > free:
        raise ConfigError(
            f"out (={out}) has {free / 1e9:.1f} GB free, about {(wanted - there) / 1e9:.1f} GB are "
            "needed (shards, and as much again until they are whole); free some or choose another "
            "disk."
        )


def estimate(chunks: Iterable[Chunk], config: ShardConfig) -> float:
    """Estimate the bytes of the stored images: those of the inputs, but none above a bound."""
    most = config.max_side**2 * _LONG_SIDES * _BYTES_PER_PIXEL
    total = 0.0
    archives: dict[str, int] = {}
    for chunk in chunks:
        if chunk.kind == "files":
            total += sum(min(file.size or 0, most) for file in chunk.files)
        elif chunk.kind != "warc":
            archives.update({chunk.location(file): file.size or 0 for file in chunk.files})
    return total + sum(archives.values())


SETTINGS_NAME = "shard_config.json"
_PARTS_NAME = ".parts"
_INPUTS_NAME = ".inputs"


@dataclass(frozen=True, slots=True)
class ShardRequest:
    """What is to be made, and where."""

    out: Path
    sources: SourceList
    config: ShardConfig

    @property
    def parts(self) -> Path:
        """Folder of the parts; there until the shards are complete."""
        return self.out / _PARTS_NAME

    @property
    def plan(self) -> Path:
        """Folder of the plan's tables."""
        return self.parts / "plan"

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the shards, without the paths of this machine."""
        options = {
            str(source.name): source.model_dump(mode="json", exclude={"name", "path"})
            for source in self.sources.sources
        }
        names = list(options)
        return {**self.config.model_dump(mode="json"), "sources": names, "source_options": options}


def check_place(out: Path, sources: SourceList) -> None:
    """Refuse a place before any work is done; writes nothing.

    Raises:
        ConfigError: `out` is a URL or a file, cannot be written, or lies inside a source.
    """
    if is_remote(str(out)):
        raise ConfigError(
            f"out (={out}) must be a folder of this machine; copy the shards when they are made."
        )
    for source in sources.sources:
        if is_remote(source.path):
            continue
        folder = local_path(source.path)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"out (={out}) lies inside source (={folder}); choose another folder."
            )
    if not _can_be_written(out):
        raise ConfigError(f"out (={out}) is no folder that can be written; choose another one.")


def check_started(job: ShardRequest, *, resume: bool) -> None:
    """Refuse a folder that holds something else; it is locked.

    Raises:
        ConfigError: It is not empty without `resume`, or was started with other settings.
    """
    out = job.out
    if not any(path.name != ".lock" for path in out.iterdir()):
        return
    if not resume:
        raise ConfigError(
            f"out (={out}) is not empty; use --resume to go on or choose another folder."
        )
    started = _read_settings(out)
    if started is None:
        raise ConfigError(f"out (={out}) holds no shards to go on with; choose another folder.")
    wanted = job.settings
    changed = sorted(key for key in wanted | started if wanted.get(key) != started.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"out (={out}) was started with {key} (={started.get(key)}), not {wanted.get(key)}; "
            "use the same settings or choose another folder."
        )


def finished_manifest(job: ShardRequest, chunks: Sequence[Chunk]) -> Manifest | None:
    """Read the manifest where all of it is there, whole, and made from inputs as they are now."""
    try:
        known = (job.out / _INPUTS_NAME).read_text(encoding="utf-8")
        made = read_manifest(job.out)
    except (OSError, ConfigError):
        return None
    reports = (read_report((job.out / shard.name).with_suffix(".json")) for shard in made.shards)
    is_whole = known == _name_inputs(chunks) and all(
        report is not None and report.sha256 == shard.sha256
        for report, shard in zip(reports, made.shards, strict=True)
    )
    return made if is_whole else None


def start_folder(job: ShardRequest) -> None:
    """Make the folder ready: settings first, no manifest and no leftovers."""
    job.parts.mkdir(parents=True, exist_ok=True)
    write_atomic(job.out / SETTINGS_NAME, json.dumps(job.settings, indent=1).encode())
    (job.out / manifest.FILE_NAME).unlink(missing_ok=True)
    remove_partials(job)


def remove_partials(job: ShardRequest) -> None:
    """Remove files that were being written."""
    for folder in (job.out, job.parts):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)


def remove_others(
    job: ShardRequest, *, parts: Iterable[str] = (), shards: Iterable[str] = ()
) -> None:
    """Remove parts, or shards, that are not among those named: of inputs or plans of before."""
    for folder, pattern, wanted in (
        (job.parts, "*.*", frozenset(parts)),
        (job.out, "shard-*.*", frozenset(shards)),
    ):
        for path in folder.glob(pattern) if wanted else ():
            if path.name.partition(".")[0] not in wanted and path.is_file():
                path.unlink()


def abandon_folder(job: ShardRequest) -> None:
    """Remove what a run without any usable image has left, so that nothing stays of it."""
    shutil.rmtree(job.parts, ignore_errors=True)
    if not any(job.out.glob("shard-*.tar")):
        (job.out / SETTINGS_NAME).unlink(missing_ok=True)


def finish_folder(
    job: ShardRequest, plan: Plan, reports: Iterable[ShardReport], chunks: Sequence[Chunk]
) -> Manifest:
    """Write the ledger and then the manifest, which completes the folder; remove the parts."""
    write_ledger(plan.excluded, job.out)
    write_pictures(plan.pictured, job.parts, job.out)
    write_atomic(job.out / _INPUTS_NAME, _name_inputs(chunks).encode())
    by_name = sorted(reports, key=lambda report: report.name)
    made = Manifest(
        version=2,
        shards=tuple(
            ShardInfo(**r.model_dump(include=set(ShardInfo.model_fields))) for r in by_name
        ),
        classes=plan.classes,
        ledger=plan.ledger,
        sources=plan.sources,
        notes=plan.notes,
        config=job.settings,
    )
    manifest.write_manifest(job.out, made)
    assert read_manifest(job.out) == made
    shutil.rmtree(job.parts)
    return made


def _name_inputs(chunks: Sequence[Chunk]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(chunk.id for chunk in chunks):
        digest.update(name.encode())
    return digest.hexdigest()


def _can_be_written(out: Path) -> bool:
    """Whether `out` is, or can become, a folder that takes files."""
    try:
        present = next(path for path in (out, *out.absolute().parents) if path.exists())
        return present.is_dir() and os.access(present, os.R_OK | os.W_OK | os.X_OK)
    except OSError:
        return False


def _read_settings(out: Path) -> dict[str, Any] | None:
    try:
        raw = json.loads((out / SETTINGS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None
