"""Decide which image goes into which shard; independent of the order of the work."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.disk_arrays import new_array
from pipeline.ingest.exchange import Kept, exchange
from pipeline.ingest.left_out_rows import LeftOutRows, pieces
from pipeline.ingest.near_rows import near_rows
from pipeline.shards.manifest import Ledger


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards, and where every other input went."""

    folder: Path
    """Of the tables; read them with `rows_of`."""
    borders: tuple[int, ...]
    """First image of every shard, and the number of all. They are in order of the content hash, so
    that each shard is a fair sample of all images."""
    classes: tuple[str, ...] | None
    left_out: pa.Table
    """In order of the path, columns as in `left_out_rows.NAMED`; mapped from the disk."""
    ledger: Ledger
    sources: dict[str, Ledger]
    notes: dict[str, int]


@contextmanager
def _lean_memory() -> Iterator[None]:
    """Let Arrow give memory back that it no longer needs: its own pool keeps it."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@_lean_memory()
def make_plan(tables: Sequence[Path], num_inputs: int, folder: Path, config: ShardConfig) -> Plan:
    """Remove duplicates, order by content and cut into shards.

    What grows with the crawl is on disk; a partition of it is in memory at a time.

    Args:
        tables: Of the parts, in any order.
        num_inputs: Rows in all of them.
        folder: Takes the plan's tables; what it held is removed.
        config: What decides.

    Raises:
        ConfigError: No image was accepted; the message counts the reasons.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    others = LeftOutRows(folder)
    kept = exchange(tables, num_inputs, folder, config.max_repeats, others.add)
    near = near_rows(kept, folder) if config.near_duplicates else np.broadcast_to(-1, len(kept))
    missing = others.finish(kept, near)
    by_source, labels, notes = _count_kept(kept, near)
    sources = _ledgers(missing, by_source)
    ledger = Ledger.sum(sources.values())
    assert ledger.inputs == num_inputs, "an input got lost"
    if not ledger.accepted:
        reasons = {**ledger.quarantined, **ledger.filtered}
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise ConfigError(f"0 usable of {num_inputs} images: {listed}. Give other sources.")
    sizes = _write_used(kept, near, ledger.accepted, folder)
    return Plan(
        folder,
        tuple(cut(sizes, config.samples_per_shard, config.bytes_per_shard).tolist()),
        tuple(sorted(labels)) if len(labels) >= 2 else None,
        missing,
        ledger,
        sources,
        dict(sorted(notes.items())),
    )


def rows_of(folder: Path, first: int, stop: int) -> pa.Table:
    """Read the rows of images `first` to before `stop`, columns as the parts have them."""
    kept = Kept(folder, np.load(folder / "starts.npy"))
    rows = np.array(np.load(folder / "used.npy", mmap_mode="r")[first:stop])
    return kept.rows(int(rows[0]), int(rows[-1]) + 1).take(pa.array(rows - rows[0]))


def cut(sizes: NDArray[np.int64], limit: int, max_bytes: int | None) -> NDArray[np.int64]:
    """Cut images in a row into shards.

    Without `max_bytes`, the fewest shards whose lengths differ by at most one; with it, each shard
    takes images while it has room, and one that is larger gets a shard of its own.

    Args:
        sizes: int64 (N,), N > 0, bytes of the images.
        limit: Most images in a shard.
        max_bytes: Most bytes in a shard, or None.

    Returns:
        int64 (S + 1,), first image of every shard, and N.
    """
    num = len(sizes)
    if max_bytes is None:
        num_shards = -(-num // limit)
        return np.arange(num_shards + 1) * num // num_shards
    borders = [0]
    while (first := borders[-1]) < num:
        ends = np.cumsum(sizes[first : first + limit])
        borders.append(first + max(1, int(np.searchsorted(ends, max_bytes, side="right"))))
    return np.array(borders)


def _write_used(kept: Kept, near: NDArray[np.int64], num: int, folder: Path) -> NDArray[np.int64]:
    """Write which of the kept rows shards hold, for `rows_of`; return their bytes, int64 (num,)."""
    used = new_array(folder / "used.npy", np.int64, (num,))
    sizes = new_array(folder / "sizes.npy", np.int64, (num,))
    np.save(folder / "starts.npy", kept.starts)
    done = 0
    for start, part in kept.partitions(["size"]):
        rows = np.flatnonzero(near[start : start + len(part)] < 0)
        used[done : done + len(rows)] = rows + start
        sizes[done : done + len(rows)] = part.column("size").to_numpy()[rows]
        done += len(rows)
    return sizes


def _count_kept(kept: Kept, near: NDArray[np.int64]) -> tuple[Counter[str], set[str], Counter[str]]:
    """Count the images of the shards by source, collect their labels, count their notes."""
    by_source: Counter[str] = Counter()
    labels: set[str] = set()
    notes: Counter[str] = Counter()
    for start, part in kept.partitions(["source", "label", "notes"]):
        rows = part.filter(pa.array(near[start : start + len(part)] < 0))
        by_source.update(_counts(rows.column("source")))
        notes.update(_counts(pc.list_flatten(rows.column("notes"))))
        labels.update(pc.unique(rows.column("label")).drop_null().to_pylist())
    return by_source, labels, notes


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def _ledgers(missing: pa.Table, accepted: Counter[str]) -> dict[str, Ledger]:
    """Count the verdicts of every source."""
    keys = ["source", "verdict", "reason", "near"]
    summed: Counter[tuple[Any, ...]] = Counter()
    for piece in pieces(missing):
        groups = piece.group_by(keys).aggregate([([], "count_all")])
        for row in groups.to_pylist():
            summed[tuple(row[key] for key in keys)] += row["count_all"]
    counts = [dict(zip(keys, group, strict=True), count_all=n) for group, n in summed.items()]
    found = {}
    for source in sorted({row["source"] for row in counts} | set(accepted)):
        rows = [row for row in counts if row["source"] == source]
        by_verdict: dict[str, dict[str, int]] = {"quarantined": {}, "filtered": {}}
        for row in sorted(rows, key=lambda row: str(row["reason"])):
            if row["verdict"] in by_verdict:
                by_verdict[row["verdict"]][row["reason"]] = row["count_all"]
        duplicates = [row for row in rows if row["verdict"] == "duplicate"]
        found[source] = Ledger(
            inputs=accepted[source] + sum(row["count_all"] for row in rows),
            accepted=accepted[source],
            duplicate=sum(row["count_all"] for row in duplicates),
            near_duplicate=sum(row["count_all"] for row in duplicates if row["near"]),
            **by_verdict,
        )
    return found
