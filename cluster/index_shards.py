"""Index shards that others wrote: small ones in this process, many on a Ray cluster."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from cluster.errors import IncompleteError
from cluster.screen import bar
from pipeline.config import ConfigError
from pipeline.shards.folder import (
    DamagedShard,
    check_folder,
    class_names,
    finish_folder,
    start_folder,
)
from pipeline.shards.listing import list_shards
from pipeline.shards.location import is_remote
from pipeline.shards.manifest import Ledger, Manifest
from pipeline.shards.record import ShardRecord, renumber, wanted_numbers
from pipeline.shards.scan import Scan, ScanSpec, scan_shard
from pipeline.shards.store import DamageError
from pipeline.shards.tar import ShardError

T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Generator[tuple[int, Any], None, None]]
"""Calls a function for every item; yields position and result, or what the call raised."""
Progress = Callable[[float, float, str], None]
"""Is told shards done, all shards, and a note."""

_RETRIES = 3
_FEW_REMOTE = 4
_SMALL_BYTES = 2**28
"""What this process scans while a local Ray starts."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What a call of `index_shards` gave and took."""

    manifest: Manifest
    num_damaged: int
    """Shards left out as a whole."""
    num_scanned: int
    """Shards read by this call; the others were known."""
    num_members: int
    """Members in the shards read by this call."""
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
    """In the shards that were scanned."""

    def add(self, position: int, scan: Scan) -> None:
        """Take in a shard that can be used."""
        self.records[position] = scan.record
        self.num_samples += scan.record.num_samples
        if scan.is_new:
            self.num_scanned += 1
            self.num_members += scan.record.num_members

    @property
    def damaged(self) -> dict[int, Exception]:
        """Of the errors, those that a shard's own bytes are the cause of; in order."""
        return {n: e for n, e in sorted(self.errors.items()) if isinstance(e, ShardError)}


def run_index(
    inputs: Sequence[str], out: Path, console: Console, *, fast: bool, skip_damaged: bool
) -> Indexed:
    """Index shards behind a bar; prints the invariant as the last line."""
    with bar(console, "index", counts=True) as line:
        indexed = index_shards(
            inputs, out, fast=fast, skip_damaged=skip_damaged, on_progress=line.update
        )
    if indexed.num_damaged:
        console.print(f"index: {indexed.num_damaged} damaged shards are left out", highlight=False)
    console.print(describe(indexed.manifest.ledger), highlight=False)
    return indexed


def describe(ledger: Ledger) -> str:
    """Spell out the invariant, with the reasons."""
    listed = ", ".join(f"{reason} {count}" for reason, count in ledger.quarantined.items())
    return (
        f"{ledger.inputs} inputs = {ledger.accepted} accepted + {ledger.num_quarantined} "
        f"quarantined{f' ({listed})' if listed else ''} + {ledger.num_filtered} filtered + "
        f"{ledger.duplicate} duplicate"
    )


def index_shards(
    inputs: Sequence[str],
    out: Path,
    *,
    fast: bool,
    skip_damaged: bool,
    on_progress: Progress,
) -> Indexed:
    """Make indexes and a manifest for shards where they lie.

    What is written does not depend on the number of workers. A call again scans only what is new
    or changed; stopped at any moment, it goes on, and what was complete before stays so.

    Args:
        inputs: As `list_shards` takes them.
        out: Folder for manifest, ledger and indexes.
        fast: Read the tars' headers only.
        skip_damaged: Leave damaged shards out and name them in the ledger.
        on_progress: Called after every shard.

    Raises:
        ConfigError: An input, `out` or a label cannot be used as it is, or no sample is usable.
        DamageError: Shards are damaged; names all of them. Nothing was completed.
        IncompleteError: Shards could not be read for another reason.
    """
    started = time.monotonic()
    names = list_shards(inputs)
    check_folder(out)
    folder = start_folder(out)
    run: Run = run_here if _are_small(names) else run_on_ray
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


def run_here(
    call: Callable[[T], R], items: Sequence[T]
) -> Generator[tuple[int, R | Exception], None, None]:
    """Call `call(item)` for every item in this process; yields position and result or error."""
    for position, item in enumerate(items):
        try:
            yield position, call(item)
        except (ConfigError, ShardError, OSError) as error:
            yield position, error


def run_on_ray(
    call: Callable[[T], R], items: Sequence[T]
) -> Generator[tuple[int, R | Exception], None, None]:
    """Do the same in tasks of Ray; yields in the order of completion."""
    from cluster.session import ensure_ray  # Ray takes a second to import, and more to start.
    from cluster.tasks import run_tasks

    ensure_ray()
    with closing(run_tasks(call, items, retries=_RETRIES, retry_on=[OSError])) as ended:
        for done in ended:
            if done.error is not None:
                yield done.position, done.error
            elif done.result is not None:
                yield done.position, done.result


def _are_small(names: Sequence[str]) -> bool:
    remote = [name for name in names if is_remote(name)]
    if len(remote) >= _FEW_REMOTE:
        return False
    sizes = (Path(name).stat().st_size for name in names if not is_remote(name))
    return sum(sizes) < _SMALL_BYTES


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
    damaged = found.damaged
    if damaged and not skip_damaged:
        listed = " ".join(map(str, damaged.values()))
        raise DamageError(
            f"{len(damaged)} of {len(names)} shards are damaged: {listed} "
            "To leave them out, use --skip-damaged."
        )
    others = {n: e for n, e in sorted(found.errors.items()) if n not in damaged}
    for error in others.values():
        if isinstance(error, ConfigError):
            raise error
    if others:
        first = next(iter(others.values()))
        raise IncompleteError(
            f"{len(others)} of {len(names)} shards could not be read: "
            f"{', '.join(names[number] for number in others)} "
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
