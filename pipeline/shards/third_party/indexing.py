"""Index third-party shards in place: indexes, a ledger and a manifest."""

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.remote.location import redact_url
from pipeline.shards import manifest
from pipeline.shards.damage import DamageError
from pipeline.shards.index import index_name
from pipeline.shards.manifest import (
    INDEX_FOLDER,
    LEDGER_NAME,
    Manifest,
    ShardInfo,
    add_counts,
    finish_folder,
    ledger_line,
)
from pipeline.shards.tar import ShardError
from pipeline.shards.third_party.listing import list_shards
from pipeline.shards.third_party.scan import (
    Scan,
    ScanSpec,
    ShardRecord,
    record_path,
    renumber,
    scan_shard,
    wanted_numbers,
)
from pipeline.shards.writer import count_inputs


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard that is excluded as a whole: one line of `ledger.jsonl`."""

    name: str
    reason: str


def check_folder(out: Path) -> None:
    """Refuse a folder before any work is done; writes nothing.

    Raises:
        ConfigError: `out` is not a folder, or holds a manifest or ledger of another kind.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out (={out}) is not a folder; choose another one.")
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


def class_names(records: Sequence[ShardRecord]) -> tuple[str, ...] | None:
    """Merge the classes of all shards: names, sorted, or numbers as text.

    Raises:
        ConfigError: Some shards have numeric labels, others names.
    """
    named = [record for record in records if record.names]
    numbered = [record for record in records if record.num_classes]
    if named and numbered:
        raise ConfigError(
            f"shard (={redact_url(named[0].name)}) has names as labels, "
            f"{redact_url(numbered[0].name)} has numbers; index them apart."
        )
    if named:
        return tuple(sorted({name for record in named for name in record.names}))
    if numbered:
        return tuple(map(str, range(max(record.num_classes for record in numbered))))
    return None


def _info(record: ShardRecord) -> ShardInfo:
    return record.info.model_copy(update={"index": f"{INDEX_FOLDER}/{record.index}"})


def _ledger_rows(outcome: ShardRecord | DamagedShard) -> list[dict[str, str]]:
    name = redact_url(outcome.name)
    if isinstance(outcome, DamagedShard):
        return [{"path": name, "verdict": "damaged", "reason": outcome.reason}]
    return [
        {"path": f"{name}/{key}", "verdict": "quarantined", "reason": reason}
        for key, reason in outcome.left_out
    ]


def _stale(out: Path, records: Sequence[ShardRecord]) -> list[Path]:
    """List files of no shard in the manifest, and leftovers of killed runs."""
    folder = out / INDEX_FOLDER
    wanted = {record_path(folder, record.name).name for record in records}
    wanted |= {record.index for record in records}
    indexes = [
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".parquet", ".partial")
        and not {path.name, index_name(path.name)} & wanted
    ]
    partials = [out.glob(f".{name}.*.partial") for name in (LEDGER_NAME, manifest.FILE_NAME)]
    return [*indexes, *chain(*partials)]


Run = Callable[[Callable[[Any], Any], Sequence[Any]], Generator[tuple[int, Any], None, None]]
"""Calls a function for every item, in any order; yields position and result or exception."""
Progress = Callable[[float, float, str], None]
"""Receives shards done, total shards and a note."""


class UnreadableError(RuntimeError):
    """Shards that could not be read, though nothing shows that they are damaged."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """Result and cost of `index_shards`."""

    manifest: Manifest
    num_damaged: int
    """Shards excluded as a whole."""
    num_scanned: int
    """Shards read by this call; the others were unchanged."""
    num_members: int
    """Members of the shards that this call read."""
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return counts and speed for JSON."""
        ledger = self.manifest.ledger
        return {
            "shards": len(self.manifest.shards),
            "damaged": self.num_damaged,
            "scanned": self.num_scanned,
            "samples": ledger.accepted,
            "inputs": ledger.inputs,
            "quarantined": ledger.quarantined,
            "notes_dropped": self.manifest.notes_dropped,
            "members": self.num_members,
            "seconds": self.seconds,
            "members_per_s": self.num_members / self.seconds,
        }


@dataclass(slots=True)
class _Found:
    """Results of the scans, by position of the shard."""

    records: dict[int, ShardRecord] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    num_samples: int = 0
    num_scanned: int = 0
    num_members: int = 0
    """Members of the scanned shards."""

    def add(self, position: int, scan: Scan) -> None:
        """Add a usable shard."""
        self.records[position] = scan.record
        self.num_samples += scan.record.num_samples
        if scan.is_new:
            self.num_scanned += 1
            self.num_members += scan.record.num_members


def run_here(
    call: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """Call `call(item)` for every item in this process, in order."""
    for position, item in enumerate(items):
        try:
            yield position, call(item)
        except (ConfigError, ShardError, OSError) as error:
            yield position, error


def index_shards(
    inputs: Sequence[str],
    out: Path,
    run: Run,
    *,
    fast: bool,
    skip_damaged: bool,
    on_progress: Progress,
) -> Indexed:
    """Index shards and write the manifest.

    The output does not depend on the order in which `run` works. Later calls scan only new and
    changed shards; an interrupted call can be resumed, and an earlier manifest stays valid.

    Args:
        inputs: See `list_shards`.
        out: Folder of manifest, ledger and indexes.
        run: Runs the scans: `run_here`, or in parallel.
        fast: Read only the headers of the tars.
        skip_damaged: Exclude damaged shards and name them in the ledger.
        on_progress: Called after every shard.

    Raises:
        ConfigError: An input, `out` or a label is unusable, or no sample is usable.
        DamageError: Shards are damaged; names all of them. No manifest was written.
        UnreadableError: Shards could not be read.
    """
    started = time.monotonic()
    names = list_shards(inputs)
    check_folder(out)
    folder = out / INDEX_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    specs = [ScanSpec(name, folder, fast) for name in names]
    found = _scan_all(specs, run, on_progress)
    _raise_errors(found, names, skip_damaged=skip_damaged)
    classes = class_names([found.records[number] for number in sorted(found.records)])
    _renumber_all(found.records, folder, classes or (), run)
    outcomes = [
        found.records.get(number) or DamagedShard(name, str(found.errors[number]))
        for number, name in enumerate(names)
    ]
    records = [outcome for outcome in outcomes if isinstance(outcome, ShardRecord)]
    made = Manifest(
        version=2,
        ledger=count_inputs(records, f"samples in {len(outcomes)} shards"),
        shards=tuple(_info(record) for record in records if record.num_samples),
        classes=classes,
        notes_dropped=add_counts(record.notes_dropped for record in records),
        notes=add_counts(record.notes for record in records),
        config={"indexed": list(inputs), "fast": fast},
    )
    lines = (ledger_line(row) for outcome in outcomes for row in _ledger_rows(outcome))
    finish_folder(out, made, lines, _stale(out, records))
    return Indexed(
        manifest=made,
        num_damaged=len(found.errors),
        num_scanned=found.num_scanned,
        num_members=found.num_members,
        seconds=time.monotonic() - started,
    )


def _scan_all(specs: Sequence[ScanSpec], run: Run, on_progress: Progress) -> _Found:
    found = _Found()
    with closing(run(scan_shard, specs)) as ended:
        for done, (position, result) in enumerate(ended, 1):
            if isinstance(result, Exception):
                found.errors[position] = result
            else:
                found.add(position, result)
            note = f"{found.num_samples} samples, {len(found.errors)} shards refused"
            on_progress(done, len(specs), note)
    return found


def _raise_errors(found: _Found, names: Sequence[str], *, skip_damaged: bool) -> None:
    """Raise for shards that could not be indexed, damage first."""
    errors = dict(sorted(found.errors.items()))
    damaged = [error for error in errors.values() if isinstance(error, ShardError)]
    if damaged and not skip_damaged:
        raise DamageError(
            f"{len(damaged)} of {len(names)} shards are damaged: {' '.join(map(str, damaged))} "
            "To exclude them, use --skip-damaged."
        )
    others = {n: error for n, error in errors.items() if not isinstance(error, ShardError)}
    for error in others.values():
        if isinstance(error, ConfigError):
            raise error
    if others:
        first = next(iter(others.values()))
        raise UnreadableError(
            f"{len(others)} of {len(names)} shards could not be read: "
            f"{', '.join(redact_url(names[number]) for number in others)} "
            f"({type(first).__name__}: {first}). Run the same command again; what was read is kept."
        ) from first


def _renumber_all(
    records: dict[int, ShardRecord], folder: Path, classes: Sequence[str], run: Run
) -> None:
    """Renumber the labels of every index to the merged classes; replaces records."""
    stale = [n for n, r in records.items() if r.numbers != wanted_numbers(r, classes)]
    items = [records[number] for number in stale]
    with closing(run(lambda record: renumber(folder, record, classes), items)) as ended:
        for position, result in ended:
            if isinstance(result, Exception):
                raise result
            records[stale[position]] = result
