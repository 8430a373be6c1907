"""Indexes and a manifest for shards that others wrote, which stay where they lie."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.remote.location import shown
from pipeline.shards.damage import DamageError
from pipeline.shards.folder import (
    DamagedShard,
    check_folder,
    class_names,
    finish_folder,
    start_folder,
)
from pipeline.shards.listing import list_shards
from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord, renumber, wanted_numbers
from pipeline.shards.scan import Scan, ScanSpec, scan_shard
from pipeline.shards.tar import ShardError

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Generator[tuple[int, Any], None, None]]
"""Calls a function for every item, in any order; yields position, and result or exception."""
Progress = Callable[[float, float, str], None]
"""Is told shards done, all shards, and a note."""


class UnreadableError(RuntimeError):
    """Shards that could not be read now, though nothing says that they are damaged."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What a call of `index_shards` gave and took."""

    manifest: Manifest
    num_damaged: int
    """Shards left out as a whole."""
    num_scanned: int
    """Shards read by this call; the others were known."""
    num_members: int
    """Members of the shards read by this call."""
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return counts and speed, as JSON holds them."""
        ledger = self.manifest.ledger
        return {
            "shards": len(self.manifest.shards),
            "damaged": self.num_damaged,
            "scanned": self.num_scanned,
            "samples": ledger.accepted,
            "inputs": ledger.inputs,
            "quarantined": ledger.quarantined,
            "members": self.num_members,
            "seconds": self.seconds,
            "members_per_s": self.num_members / self.seconds,
        }


@dataclass(slots=True)
class _Found:
    """What the scans gave, by position of the shard."""

    records: dict[int, ShardRecord] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    num_samples: int = 0
    num_scanned: int = 0
    num_members: int = 0
    """Of the shards that were scanned."""

    def add(self, position: int, scan: Scan) -> None:
        """Take in a shard that can be used."""
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

    What is written does not depend on the order in which `run` works. A call again scans only what
    is new or changed; stopped at any moment, it goes on, and what was complete before stays so.

    Args:
        inputs: As `list_shards` takes them.
        out: Folder for manifest, ledger and indexes.
        run: How the scans are run: `run_here`, or on more processes.
        fast: Read the tars' headers only.
        skip_damaged: Leave damaged shards out and name them in the ledger.
        on_progress: Called after every shard.

    Raises:
        ConfigError: An input, `out` or a label cannot be used as it is, or no sample is usable.
        DamageError: Shards are damaged; names all of them. Nothing was completed.
        UnreadableError: Shards could not be read now.
    """
    started = time.monotonic()
    names = list_shards(inputs)
    check_folder(out)
    folder = start_folder(out)
    specs = [ScanSpec(name, folder, fast) for name in names]
    found = _scan_all(specs, run, on_progress)
    _raise_errors(found, names, skip_damaged=skip_damaged)
    classes = class_names([found.records[number] for number in sorted(found.records)])
    _renumber_all(found.records, folder, classes or (), run)
    outcomes = [
        found.records.get(number) or DamagedShard(name, str(found.errors[number]))
        for number, name in enumerate(names)
    ]
    manifest = finish_folder(out, outcomes, classes, {"indexed": list(inputs), "fast": fast})
    return Indexed(
        manifest=manifest,
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
    """Raise for what keeps the index from being complete, damage first."""
    errors = dict(sorted(found.errors.items()))
    damaged = [error for error in errors.values() if isinstance(error, ShardError)]
    if damaged and not skip_damaged:
        raise DamageError(
            f"{len(damaged)} of {len(names)} shards are damaged: {' '.join(map(str, damaged))} "
            "To leave them out, use --skip-damaged."
        )
    others = {n: error for n, error in errors.items() if not isinstance(error, ShardError)}
    for error in others.values():
        if isinstance(error, ConfigError):
            raise error
    if others:
        first = next(iter(others.values()))
        raise UnreadableError(
            f"{len(others)} of {len(names)} shards could not be read: "
            f"{', '.join(shown(names[number]) for number in others)} "
            f"({type(first).__name__}: {first}). Run the same command again; what was read is kept."
        ) from first


def _renumber_all(
    records: dict[int, ShardRecord], folder: Path, classes: Sequence[str], run: Run
) -> None:
    """Let the labels of every index count through the same classes; replaces records."""
    others = [n for n, r in records.items() if r.numbers != wanted_numbers(r, classes)]
    items = [records[number] for number in others]
    with closing(run(lambda record: renumber(folder, record, classes), items)) as ended:
        for position, result in ended:
            if isinstance(result, Exception):
                raise result
            records[others[position]] = result
