"""The folder that shards go into: who may write, what a resume may keep, what completes it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.crawl.build import ShardReport, ShardSpec
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.plan import Plan
from pipeline.crawl.sources import source_names
from pipeline.shards import manifest
from pipeline.shards.manifest import Manifest, ShardInfo, write_atomic

LEDGER_NAME = "ledger.jsonl"
SETTINGS_NAME = "shard_config.json"


def settings(sources: Sequence[Path], config: ShardConfig) -> dict[str, Any]:
    """Describe what makes the shards, without the paths of this machine."""
    return {**config.model_dump(mode="json"), "sources": source_names(sources)}


def check_folder(out: Path, sources: Sequence[Path], config: ShardConfig, *, resume: bool) -> None:
    """Refuse a folder before any work is done; writes nothing.

    Raises:
        ConfigError: `out` is a file, cannot be written, lies inside a source, is not empty
            without `resume`, or was started with other settings.
    """
    for source in sources:
        if out.resolve().is_relative_to(source.resolve()):
            raise ConfigError(
                f"out (={out}) lies inside source (={source}); choose another folder."
            )
    if not _can_be_written(out):
        raise ConfigError(f"out (={out}) is no folder that can be written; choose another one.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not resume:
        raise ConfigError(
            f"out (={out}) is not empty; use --resume to go on or choose another folder."
        )
    started = _read_settings(out)
    if started is None:
        raise ConfigError(f"out (={out}) holds no shards to go on with; choose another folder.")
    wanted = settings(sources, config)
    changed = sorted(key for key in wanted | started if wanted.get(key) != started.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"out (={out}) was started with {key} (={started.get(key)}), not {wanted.get(key)}; "
            "use the same settings or choose another folder."
        )


def start_folder(
    out: Path, sources: Sequence[Path], config: ShardConfig, specs: Sequence[ShardSpec]
) -> None:
    """Make the folder ready for `specs`: settings first, no leftovers, no manifest yet."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / SETTINGS_NAME, json.dumps(settings(sources, config), indent=1).encode())
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    wanted = {spec.stem for spec in specs}
    for path in [*out.glob(".*.partial"), *out.glob("shard-*.*")]:
        if path.suffix == ".partial" or path.stem not in wanted:
            path.unlink()


def finish_folder(
    out: Path,
    sources: Sequence[Path],
    config: ShardConfig,
    plan: Plan,
    reports: Sequence[ShardReport],
) -> Manifest:
    """Write the ledger and then the manifest, which completes the folder.

    Args:
        out: Folder of the shards.
        sources: Folders the images came from.
        config: What made the shards.
        plan: What the shards hold.
        reports: One for each shard, in any order.
    """
    rows = [
        {key: value for key, value in asdict(item).items() if value is not None}
        for item in plan.left_out
    ]
    write_atomic(out / LEDGER_NAME, "".join(json.dumps(row) + "\n" for row in rows).encode())
    by_name = sorted(reports, key=lambda report: report.name)
    made = Manifest(
        version=2,
        shards=tuple(ShardInfo(**report.model_dump(exclude={"plan_id"})) for report in by_name),
        classes=plan.classes,
        ledger=plan.ledger,
        config=settings(sources, config),
    )
    manifest.write_manifest(out, made)
    return made


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
