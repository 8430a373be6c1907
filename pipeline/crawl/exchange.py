"""The tables of all parts, brought into order of the content hash, in bounded memory.

Parts are in the order of the sources, shards in that of the hashes. Accepted rows are spread over
partitions by the first bits of their hash; a partition fits into memory and is then settled alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.crawl.dedupe import content_hashes, settle
from pipeline.crawl.parts import HASH, SCHEMA

ROWS_PER_PARTITION = 2**17
_ROWS_AT_ONCE = 2**15

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
            yield start, _read_kept(self.folder, number).select(columns)

    def column(self, name: str) -> NDArray[np.int64]:
        """Read a column of numbers, int64 (N,)."""
        found = [part.column(name).to_numpy() for _, part in self.partitions([name])]
        return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)

    def names(self, rows: NDArray[np.int64]) -> pa.Array:
        """Look up the names of `rows`, in their order."""
        order = np.argsort(rows, kind="stable")
        found = [
            _read_kept(self.folder, number).column("name").take(pa.array(inside))
            for number, inside in self._split(rows[order])
        ]
        names = pa.chunked_array([c for part in found for c in part.chunks], pa.string())
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return names.cast(pa.large_string()).combine_chunks().take(pa.array(back))

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

    def _split(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (partition, rows in it) for sorted `rows`."""
        borders = np.searchsorted(rows, self.starts)
        for number, (a, b) in enumerate(pairwise(borders)):
            if b > a:
                yield number, rows[a:b] - self.starts[number]


def exchange(
    tables: Iterable[Path], num_inputs: int, folder: Path, max_repeats: int | None
) -> tuple[Kept, list[pa.Table]]:
    """Bring the rows of all parts into order and settle exact duplicates.

    Args:
        tables: Of the parts, in any order.
        num_inputs: Rows in all of them; decides the number of partitions, not the result.
        folder: Empty; takes the partitions.
        max_repeats: As `settle` takes it.

    Returns:
        The kept rows, and tables (LEFT_OUT) of all others.
    """
    num_partitions = max(1, -(-num_inputs // ROWS_PER_PARTITION))
    others = list(_spread(tables, folder, num_partitions))
    counts: list[int] = []
    for number in range(num_partitions):
        path = folder / f"accepted-{number:05}.arrows"
        accepted = _read_streams(path)
        path.unlink(missing_ok=True)
        others.append(_settle(accepted, folder, number, sum(counts), max_repeats))
        counts.append(len(_read_kept(folder, number)))
    return Kept(folder, np.cumsum([0, *counts])), others


def _spread(tables: Iterable[Path], folder: Path, num_partitions: int) -> Iterator[pa.Table]:
    """Append accepted rows to the files of their partitions; yield what the gate left out."""
    waiting: list[pa.Table] = []
    for path in tables:
        rows = pq.read_table(path, use_threads=False, partitioning=None)
        rows = rows.replace_schema_metadata(None)
        is_accepted = pc.equal(rows.column("outcome"), "accepted")
        yield _refused(rows.filter(pc.invert(is_accepted)))
        waiting.append(rows.filter(is_accepted))
        if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
            _append(pa.concat_tables(waiting), folder, num_partitions)
            waiting = []
    if waiting:
        _append(pa.concat_tables(waiting), folder, num_partitions)


def _refused(rows: pa.Table) -> pa.Table:
    about = [rows.column(name) for name in _ABOUT_IMAGE]
    columns = [rows.column(name) for name in ("name", "source", "outcome", "reason")]
    nothing = pa.nulls(len(rows), pa.int64())
    return _table(*columns, nothing, *about)


def _table(*columns: pa.ChunkedArray) -> pa.Table:
    return pa.table(list(columns), LEFT_OUT.names).cast(LEFT_OUT)


def _append(rows: pa.Table, folder: Path, num_partitions: int) -> None:
    high = content_hashes(rows)[:, 0]
    number = ((high >> np.uint64(32)) * np.uint64(num_partitions)) >> np.uint64(32)
    order = np.argsort(number, kind="stable")
    borders = np.searchsorted(number[order], np.arange(num_partitions + 1))
    rows = rows.take(pa.array(order))
    for partition, (a, b) in enumerate(pairwise(borders)):
        if b > a:
            # A stream for each time: thousands of files cannot stay open.
            with (
                (folder / f"accepted-{partition:05}.arrows").open("ab") as file,
                pa.ipc.new_stream(file, SCHEMA) as stream,
            ):
                stream.write_table(rows.slice(a, b - a))


def _read_streams(path: Path) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    if path.exists():
        with path.open("rb") as file:
            size = path.stat().st_size
            while file.tell() < size:
                batches.extend(pa.ipc.open_stream(file))
    return pa.Table.from_batches(batches, SCHEMA)


def _settle(
    accepted: pa.Table, folder: Path, number: int, start: int, max_repeats: int | None
) -> pa.Table:
    """Write the kept rows of a partition, which begins at row `start`; return the others."""
    found = settle(accepted, max_repeats)
    kept = accepted.take(pa.array(found.kept)).combine_chunks()
    digits = kept.column("content_hash").cast(pa.binary()).to_pylist()
    assert len({d[:10] for d in digits}) == len(digits), "two images share a key"
    with _kept_path(folder, number).open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(kept)
    repeats = accepted.take(pa.array(found.repeats))
    others = accepted.take(pa.array(found.placeholders))
    return pa.concat_tables(
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
