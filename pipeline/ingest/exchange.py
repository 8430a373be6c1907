"""The tables of all parts, brought into order of the content hash, in bounded memory.

Parts are in the order of the sources, shards in that of the hashes. Accepted rows are spread over
partitions by the first bits of their hash; a partition fits into memory and is then settled alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.ingest.dedupe import content_hashes, settle
from pipeline.ingest.parts import HASH, SCHEMA
from pipeline.ingest.spread import Spread, gathered, num_partitions

LEFT_OUT = pa.schema(
    [
        ("path", pa.large_string()),
        ("source", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("winner_row", pa.int64()),  # of the kept table, where it is a duplicate
        ("content_hash", HASH),
        ("part", HASH),
        ("offset", pa.int64()),  # as in the parts
        ("size", pa.int64()),
        ("stored_hash", pa.uint64()),
    ]
)
_ABOUT_IMAGE = ["content_hash", "part", "offset", "size", "stored_hash"]
ABOUT_LEFT_OUT = ["name", "source", *_ABOUT_IMAGE]
"""Columns of the parts that `left_out` reads."""

_HALF = np.uint64(32)

TakeLeftOut = Callable[[pa.Table], None]
"""Is given tables of LEFT_OUT."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One row for each accepted content, in order of the content hash, on disk."""

    folder: Path
    starts: NDArray[np.int64]
    """(P + 1,), first row of every partition, and the number of rows."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def partitions(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the first row and the table of every partition."""
        for number, start in enumerate(self.starts[:-1].tolist()):
            yield start, self.partition(number, columns)

    def partition(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Read a partition."""
        return _read_kept(self.folder, number).select(columns)

    def partitions_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return in which partition each of `rows` is, int64 (N,)."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def rows(self, first: int, stop: int) -> pa.Table:
        """Read the rows from `first` to before `stop`."""
        pieces = []
        for number, start in enumerate(self.starts[:-1].tolist()):
            end = int(self.starts[number + 1])
            if start < stop and first < end:
                table = _read_kept(self.folder, number)
                pieces.append(
                    table.slice(max(first - start, 0), min(stop, end) - max(first, start))
                )
        return pa.concat_tables(pieces)


def exchange(
    tables: Iterable[Path],
    num_inputs: int,
    folder: Path,
    max_repeats: int | None,
    take_left_out: TakeLeftOut,
) -> Kept:
    """Bring the rows of all parts into order and settle exact duplicates.

    Args:
        tables: Of the parts, in any order.
        num_inputs: Rows in all of them; decides the number of partitions, not the result.
        folder: Takes the partitions.
        max_repeats: As `settle` takes it.
        take_left_out: Gets all rows that are not kept.

    Returns:
        The kept rows.
    """
    partitions = num_partitions(num_inputs)
    accepted = Spread(folder, "accepted", SCHEMA)
    for rows in gathered(_accepted(tables, take_left_out), partitions):
        accepted.add(rows, _partitions_of(rows, partitions))
    starts = [0]
    for number in range(partitions):
        kept, others = _settle(accepted.pop(number), starts[-1], max_repeats)
        with _kept_path(folder, number).open("wb") as file, pa.ipc.new_file(file, SCHEMA) as out:
            out.write_table(kept)
        starts.append(starts[-1] + len(kept))
        take_left_out(others)
    return Kept(folder, np.array(starts))


def _accepted(tables: Iterable[Path], take_left_out: TakeLeftOut) -> Iterator[pa.Table]:
    """Yield the accepted rows of each table; give away what the gate left out."""
    for path in tables:
        rows = pq.read_table(path, use_threads=False, partitioning=None)
        rows = rows.replace_schema_metadata(None)
        is_accepted = pc.equal(rows.column("outcome"), "accepted")
        take_left_out(_refused(rows.filter(pc.invert(is_accepted))))
        yield rows.filter(is_accepted)


def _partitions_of(rows: pa.Table, partitions: int) -> NDArray[np.int64]:
    """Return the partition of each row, by the first bits of its hash."""
    high = content_hashes(rows)[:, 0]
    return (((high >> _HALF) * np.uint64(partitions)) >> _HALF).astype(np.int64)


def _refused(rows: pa.Table) -> pa.Table:
    about = [rows.column(name) for name in _ABOUT_IMAGE]
    columns = [rows.column(name) for name in ("name", "source", "outcome", "reason")]
    nothing = pa.nulls(len(rows), pa.int64())
    return _table(*columns, nothing, *about)


def _table(*columns: pa.ChunkedArray) -> pa.Table:
    return pa.table(list(columns), LEFT_OUT.names).cast(LEFT_OUT)


def _settle(accepted: pa.Table, start: int, max_repeats: int | None) -> tuple[pa.Table, pa.Table]:
    """Return the kept rows of a partition, which begins at row `start`, and the others."""
    found = settle(accepted, max_repeats)
    kept = accepted.take(pa.array(found.kept)).combine_chunks()
    high, low = content_hashes(kept).T
    low >>= np.uint64(48)  # A key has 80 bits.
    assert not ((high[1:] == high[:-1]) & (low[1:] == low[:-1])).any(), "two images share a key"
    repeats = accepted.take(pa.array(found.repeats))
    others = accepted.take(pa.array(found.placeholders))
    return kept, pa.concat_tables(
        [
            left_out(repeats, "duplicate", None, pa.array(found.winners + start)),
            left_out(others, "filtered", "placeholder", pa.nulls(len(others), pa.int64())),
        ]
    )


def left_out(rows: pa.Table, verdict: str, reason: str | None, winners: pa.Array) -> pa.Table:
    """Say of rows (columns as of parts) why they are left out: a table of LEFT_OUT."""
    size = len(rows)
    about = [rows.column(name) for name in _ABOUT_IMAGE]
    verdicts, reasons = pa.repeat(verdict, size), pa.repeat(pa.scalar(reason, pa.string()), size)
    return _table(rows.column("name"), rows.column("source"), verdicts, reasons, winners, *about)


def _kept_path(folder: Path, number: int) -> Path:
    return folder / f"kept-{number:05}.arrow"


def _read_kept(folder: Path, number: int) -> pa.Table:
    with pa.memory_map(str(_kept_path(folder, number))) as file:
        return pa.ipc.open_file(file).read_all()
