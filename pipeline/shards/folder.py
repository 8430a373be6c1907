"""The folder that indexes of others' shards go into: what it may hold, what completes it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.remote.location import shown
from pipeline.shards import manifest
from pipeline.shards.first_use import index_name
from pipeline.shards.manifest import Ledger, Manifest, ShardInfo
from pipeline.shards.record import ShardRecord, record_path

INDEX_FOLDER = "index"
LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard that is left out as a whole: one line of `ledger.jsonl`."""

    name: str
    reason: str


def check_folder(out: Path) -> None:
    """Refuse a folder before any work is done; writes nothing.

    Raises:
        ConfigError: `out` is no folder, or holds a manifest or ledger that no index made.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out (={out}) is no folder; choose another one.")
    path = out / manifest.FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        raw = {}
    is_foreign = raw is not None and "indexed" not in dict(raw).get("config", {})
    if is_foreign or ((out / LEDGER_NAME).exists() and not (out / INDEX_FOLDER).exists()):
        raise ConfigError(
            f"out (={out}) holds shards with a manifest or ledger of their own; choose another "
            "folder."
        )


def start_folder(out: Path) -> Path:
    """Make the folder; returns the one in it where records and indexes go.

    What an earlier call completed stays complete until this one is.
    """
    folder = out / INDEX_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def class_names(records: Sequence[ShardRecord]) -> tuple[str, ...] | None:
    """Return the classes of all shards together: names, sorted, or numbers as text.

    Raises:
        ConfigError: Some shards have numbers as labels, others names.
    """
    named = [record for record in records if record.names]
    numbered = [record for record in records if record.num_classes]
    if named and numbered:
        raise ConfigError(
            f"shard (={shown(named[0].name)}) has names as labels, {shown(numbered[0].name)} has "
            "numbers; index them apart."
        )
    if named:
        return tuple(sorted({name for record in named for name in record.names}))
    if numbered:
        return tuple(map(str, range(max(record.num_classes for record in numbered))))
    return None


def finish_folder(
    out: Path,
    outcomes: Sequence[ShardRecord | DamagedShard],
    classes: tuple[str, ...] | None,
    config: dict[str, object],
) -> Manifest:
    """Write the ledger and then the manifest, which completes the folder; remove what is stale.

    Args:
        out: The folder.
        outcomes: One for each shard, in the order of the manifest; labels count through `classes`.
        classes: Of all shards together.
        config: What made the indexes.

    Raises:
        ConfigError: No sample is usable; the message counts the reasons.
    """
    records = [outcome for outcome in outcomes if isinstance(outcome, ShardRecord)]
    ledger = _count(records)
    if not ledger.accepted:
        listed = ", ".join(f"{count} {reason}" for reason, count in ledger.quarantined.items())
        raise ConfigError(
            f"0 usable of {ledger.inputs} samples in {len(outcomes)} shards"
            f"{': ' + listed if listed else ''}. Give other shards."
        )
    made = Manifest(
        version=2,
        shards=tuple(_info(record) for record in records if record.num_samples),
        classes=classes,
        ledger=ledger,
        config=config,
    )
    lines = [json.dumps(row) + "\n" for outcome in outcomes for row in _ledger_rows(outcome)]
    write_atomic(out / LEDGER_NAME, "".join(lines).encode())
    manifest.write_manifest(out, made)
    _remove_stale(out, records)
    return made


def _count(records: Sequence[ShardRecord]) -> Ledger:
    reasons = Counter(reason for record in records for _, reason in record.left_out)
    return Ledger(
        inputs=sum(record.num_inputs for record in records),
        accepted=sum(record.num_samples for record in records),
        quarantined=dict(sorted(reasons.items())),
        filtered={},
        duplicate=0,  # Equal images of others' shards are kept.
    )


def _info(record: ShardRecord) -> ShardInfo:
    return ShardInfo(
        name=record.name,
        index=f"{INDEX_FOLDER}/{record.index}",
        num_samples=record.num_samples,
        num_bytes=record.num_bytes,
        sha256=record.sha256,
        index_sha256=record.index_sha256,
    )


def _ledger_rows(outcome: ShardRecord | DamagedShard) -> list[dict[str, str]]:
    name = shown(outcome.name)
    if isinstance(outcome, DamagedShard):
        return [{"path": name, "verdict": "damaged", "reason": outcome.reason}]
    return [
        {"path": f"{name}/{key}", "verdict": "quarantined", "reason": reason}
        for key, reason in outcome.left_out
    ]


def _remove_stale(out: Path, records: Sequence[ShardRecord]) -> None:
    """Remove what belongs to no shard of the manifest, and what killed runs left."""
    folder = out / INDEX_FOLDER
    wanted = {record_path(folder, record.name).name for record in records}
    wanted |= {record.index for record in records}
    stale = [
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".parquet", ".partial")
        and not {path.name, index_name(path.name)} & wanted
    ]
    for name in (LEDGER_NAME, manifest.FILE_NAME):
        stale += out.glob(f".{name}.*.partial")
    for path in stale:
        path.unlink(missing_ok=True)
