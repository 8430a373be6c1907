"""Decide which image goes into which shard; independent of the order of the work."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.dedupe import name_ranks
from pipeline.crawl.exchange import ABOUT_LEFT_OUT, Kept, exchange, left_out
from pipeline.crawl.near_duplicates import find_near
from pipeline.shards.manifest import Ledger


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An input that no shard holds: one line of `ledger.jsonl`."""

    path: str
    verdict: str
    """quarantined, filtered or duplicate."""
    reason: str | None
    winner: str | None
    """Of a duplicate: path of the input in the shards that stands for it."""
    near: bool = False
    """Whether a duplicate looks like its winner rather than having its bytes."""
    source: str | None = None
    """Name of its source."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards, and where every other input went."""

    folder: Path
    """Of the tables; read them with `rows_of`."""
    borders: tuple[int, ...]
    """First row of every shard, and the end of the last, in the table of kept rows. They are in
    order of the content hash, so that each shard is a fair sample of all images."""
    classes: tuple[str, ...] | None
    left_out: pa.Table
    """In order of the path: path, source, verdict, reason, winner, near, content_hash, part,
    offset, size, stored_hash."""
    ledger: Ledger
    sources: dict[str, Ledger]
    notes: dict[str, int]


def make_plan(tables: Sequence[Path], num_inputs: int, folder: Path, config: ShardConfig) -> Plan:
    """Remove duplicates, order by content and cut into shards.

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
    kept, others = exchange(tables, num_inputs, folder, config.max_repeats)
    near = _find_near(kept, folder) if config.near_duplicates else np.full(len(kept), -1)
    missing = _name_winners(others, kept, near)
    is_used = near < 0
    by_source, labels, notes = _count_kept(kept, is_used)
    sources = _ledgers(missing, by_source)
    ledger = Ledger.sum(sources.values())
    assert ledger.inputs == num_inputs, "an input got lost"
    if not ledger.accepted:
        reasons = {**ledger.quarantined, **ledger.filtered}
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise ConfigError(f"0 usable of {num_inputs} images: {listed}. Give other sources.")
    np.save(folder / "starts.npy", kept.starts)
    np.save(folder / "is_used.npy", is_used)
    used = np.append(np.flatnonzero(is_used), len(kept))
    cuts = cut(kept.column("size")[is_used], config.samples_per_shard, config.bytes_per_shard)
    classes = tuple(sorted(labels)) if len(labels) >= 2 else None
    return Plan(
        folder,
        tuple(used[cuts].tolist()),
        classes,
        missing,
        ledger,
        sources,
        dict(sorted(notes.items())),
    )


def rows_of(folder: Path, first: int, stop: int) -> pa.Table:
    """Read the rows of a shard, columns as the parts have them."""
    kept = Kept(folder, np.load(folder / "starts.npy"))
    is_used = np.load(folder / "is_used.npy", mmap_mode="r")[first:stop]
    return kept.rows(first, stop).filter(pa.array(np.array(is_used)))


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
    ends = np.cumsum(sizes)
    borders = [0]
    while (first := borders[-1]) < num:
        before = int(ends[first - 1]) if first else 0
        room = int(np.searchsorted(ends, before + max_bytes, side="right"))
        borders.append(min(max(room, first + 1), first + limit, num))
    return np.array(borders)


def _find_near(kept: Kept, folder: Path) -> NDArray[np.int64]:
    """Return the row that each kept row looks like, -1 where it stays, int64 (N,)."""
    if not len(kept):
        return np.empty(0, np.int64)
    words: NDArray[np.uint64] | None = None
    for start, part in kept.partitions(["near_words"]):
        column = part.column("near_words").combine_chunks()
        if not len(column):
            continue
        found = np.frombuffer(b"".join(column.to_pylist()), "<u8").reshape(len(column), -1)
        if words is None:
            shape = (len(kept), found.shape[1])
            path = folder / "words.npy"
            words = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint64, shape=shape)
        words[start : start + len(found)] = found
    assert words is not None
    near: NDArray[np.int64] = find_near(words, _ranks(kept), folder)
    (folder / "words.npy").unlink()
    return near


def _ranks(kept: Kept) -> NDArray[np.int64]:
    """Rank the kept rows, int64 (N,), 0 is best: more pixels, then more bytes, then the name."""
    pixels = kept.column("width") * kept.column("height")
    sizes = kept.column("size")
    order = np.lexsort((-sizes, -pixels))
    same = (np.diff(pixels[order]) == 0) & (np.diff(sizes[order]) == 0)
    is_tied = np.zeros(len(order), bool)
    is_tied[1:] |= same
    is_tied[:-1] |= same
    tied = np.sort(order[is_tied])  # Names are read for these alone.
    by_name = np.zeros(len(order), np.int64)
    by_name[tied] = name_ranks(kept.names(tied))
    order = np.lexsort((by_name, -sizes, -pixels))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _name_winners(others: Iterable[pa.Table], kept: Kept, near: NDArray[np.int64]) -> pa.Table:
    """Put together all inputs that are left out, in order of the path.

    The winner of a duplicate is in the shards: where the input with the same bytes is itself a
    near duplicate, its winner is taken.
    """
    found = pa.concat_tables([*others, *_near_left_out(kept, near)])
    rows = found.column("winner_row").fill_null(-1).to_numpy()
    is_duplicate = rows >= 0
    follows = np.where(is_duplicate, near[rows] if len(near) else -1, -1)
    is_near = follows >= 0
    final = np.where(is_near, follows, rows)
    names = kept.names(final[is_duplicate]) if is_duplicate.any() else pa.array([], pa.string())
    place = np.cumsum(is_duplicate) - 1
    winners = names.take(pa.array(place, mask=~is_duplicate))
    found = found.drop_columns(["winner_row"])
    found = found.append_column("winner", winners).append_column("near", pa.array(is_near))
    return found.take(pc.sort_indices(found.column("path")))


def _near_left_out(kept: Kept, near: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield the kept rows that look like another; their winner is found from their own row."""
    for start, part in kept.partitions(ABOUT_LEFT_OUT):
        rows = np.flatnonzero(near[start : start + len(part)] >= 0)
        if len(rows):
            winners = pa.array(rows + start)
            yield left_out(part.take(pa.array(rows)), "duplicate", None, winners)


def _count_kept(
    kept: Kept, is_used: NDArray[np.bool_]
) -> tuple[Counter[str], set[str], Counter[str]]:
    """Count the images of the shards by source, collect their labels, count their notes."""
    by_source: Counter[str] = Counter()
    labels: set[str] = set()
    notes: Counter[str] = Counter()
    for start, part in kept.partitions(["source", "label", "notes"]):
        rows = part.filter(pa.array(is_used[start : start + len(part)]))
        by_source.update(_counts(rows.column("source")))
        notes.update(_counts(pc.list_flatten(rows.column("notes"))))
        labels.update(pc.unique(rows.column("label")).drop_null().to_pylist())
    return by_source, labels, notes


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def _ledgers(missing: pa.Table, accepted: Counter[str]) -> dict[str, Ledger]:
    """Count the verdicts of every source."""
    keys = ["source", "verdict", "reason", "near"]
    counts = missing.group_by(keys).aggregate([([], "count_all")]).to_pylist()
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
