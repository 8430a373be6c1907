"""The output folder of shards: its lock, what a resume may keep, what completes it."""

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
from pipeline.ingest.excluded import ledger_lines, write_pictures
from pipeline.ingest.plan import Plan
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.source_list import SourceList
from pipeline.lock import LOCK_NAME
from pipeline.remote.location import is_remote, local_path
from pipeline.shards import manifest
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.writer import ShardReport, read_report

_COPIES = 2  # Parts and shards coexist until the end.
_MARGIN = 1.2
_BYTES_PER_PIXEL = 0.75
"""Usual upper bound for a large stored image."""
_LONG_SIDES = 2
"""Usual upper bound for long side / short side of a stored image."""


def require_disk_space(out: Path, chunks: Sequence[Chunk], config: ShardConfig) -> None:
    """Compare an estimate of the output with the free space on the disk of `out`.

    Sources of unknown or meaningless size (web archives hold mostly text) do not count.

    Raises:
        ConfigError: There is too little space.
    """
    wanted = _COPIES * _MARGIN * estimate(chunks, config)
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if wanted - there > free:
        raise ConfigError(
            f"out (={out}) has {free / 1e9:.1f} GB free, about {(wanted - there) / 1e9:.1f} GB are "
            "needed (shards, and as much again until they are complete); free some or choose "
            "another disk."
        )


def estimate(chunks: Iterable[Chunk], config: ShardConfig) -> float:
    """Estimate the bytes of the stored images: input sizes, each bounded."""
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
    """What to make, and where."""

    out: Path
    sources: SourceList
    config: ShardConfig

    @property
    def parts(self) -> Path:
        """Folder of the parts; exists until the shards are complete."""
        return self.out / _PARTS_NAME

    @property
    def plan(self) -> Path:
        """Folder of the plan's tables."""
        return self.parts / "plan"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the shards, without paths of this machine."""
        options = {
            str(source.name): source.model_dump(mode="json", exclude={"name", "path"})
            for source in self.sources.sources
        }
        names = list(options)
        return {**self.config.model_dump(mode="json"), "sources": names, "source_options": options}


def check_place(out: Path, sources: SourceList) -> None:
    """Refuse an unusable `out` before any work is done; writes nothing.

    Raises:
        ConfigError: `out` is a URL or a file, cannot be written, or is inside a source.
    """
    if is_remote(str(out)):
        raise ConfigError(
            f"out (={out}) must be a folder on this machine; copy the shards when they are made."
        )
    for source in sources.sources:
        if is_remote(source.path):
            continue
        folder = local_path(source.path)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"out (={out}) is inside source (={folder}); choose another folder.")
    if not _can_be_written(out):
        raise ConfigError(f"out (={out}) is not a writable folder; choose another one.")


def check_started(job: ShardRequest, *, resume: bool) -> None:
    """Refuse a locked folder with other contents.

    Raises:
        ConfigError: It is not empty without `resume`, or was started with other settings.
    """
    out = job.out
    if not any(path.name != LOCK_NAME for path in out.iterdir()):
        return
    if not resume:
        raise ConfigError(
            f"out (={out}) is not empty; use --resume to go on or choose another folder."
        )
    started = _read_settings(out)
    if started is None:
        raise ConfigError(f"out (={out}) holds no shards to resume; choose another folder.")
    wanted = job.settings
    changed = sorted(key for key in wanted | started if wanted.get(key) != started.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"out (={out}) was started with {key} (={started.get(key)}), not {wanted.get(key)}; "
            "use the same settings or choose another folder."
        )


def finished_manifest(job: ShardRequest, chunks: Sequence[Chunk]) -> Manifest | None:
    """Read the manifest if its shards are intact and were made from the current inputs."""
    try:
        known = (job.out / _INPUTS_NAME).read_text(encoding="utf-8")
        made = read_manifest(job.out)
    except (OSError, ConfigError):
        return None
    paths = ((job.out / shard.name).with_suffix(".json") for shard in made.shards)
    reports = (read_report(path, ShardReport) for path in paths)
    is_whole = known == _name_inputs(chunks) and all(
        report is not None and report.sha256 == shard.sha256
        for report, shard in zip(reports, made.shards, strict=True)
    )
    return made if is_whole else None


def start_folder(job: ShardRequest) -> None:
    """Prepare the folder: write the settings; remove manifest and leftovers."""
    job.parts.mkdir(parents=True, exist_ok=True)
    write_atomic(job.out / SETTINGS_NAME, json.dumps(job.settings, indent=1).encode())
    (job.out / manifest.FILE_NAME).unlink(missing_ok=True)
    remove_partials(job)


def remove_partials(job: ShardRequest) -> None:
    """Remove partially written files."""
    for folder in (job.out, job.parts):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)


def remove_others(
    job: ShardRequest, *, parts: Iterable[str] = (), shards: Iterable[str] = ()
) -> None:
    """Remove all but the named parts or shards: those of earlier inputs or plans."""
    for folder, pattern, wanted in (
        (job.parts, "*.*", frozenset(parts)),
        (job.out, "shard-*.*", frozenset(shards)),
    ):
        for path in folder.glob(pattern) if wanted else ():
            if path.name.partition(".")[0] not in wanted and path.is_file():
                path.unlink()


def abandon_folder(job: ShardRequest) -> None:
    """Remove all traces of a run without any usable image."""
    shutil.rmtree(job.parts, ignore_errors=True)
    if not any(job.out.glob("shard-*.tar")):
        (job.out / SETTINGS_NAME).unlink(missing_ok=True)


def finish_folder(
    job: ShardRequest,
    plan: Plan,
    reports: Iterable[ShardReport],
    chunks: Sequence[Chunk],
    notes_dropped: dict[str, int],
) -> Manifest:
    """Write pictures, ledger and, last, the manifest; then remove the parts."""
    write_pictures(plan.pictured, job.parts, job.out)
    write_atomic(job.out / _INPUTS_NAME, _name_inputs(chunks).encode())
    made = Manifest(
        version=2,
        shards=tuple(report.info for report in sorted(reports, key=lambda report: report.name)),
        classes=plan.classes,
        ledger=plan.ledger,
        sources=plan.sources,
        notes=plan.notes,
        notes_dropped=notes_dropped,
        label_conflicts=plan.label_conflicts,
        config=job.settings,
    )
    manifest.finish_folder(job.out, made, ledger_lines(plan.excluded))
    assert read_manifest(job.out) == made
    shutil.rmtree(job.parts)
    return made


def _name_inputs(chunks: Sequence[Chunk]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(chunk.id for chunk in chunks):
        digest.update(name.encode())
    return digest.hexdigest()


def _can_be_written(out: Path) -> bool:
    """Tell whether `out` is, or can become, a writable folder."""
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
