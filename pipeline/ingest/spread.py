"""Tables too large for memory, spread over partitions on disk; a partition is then read alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROWS_PER_PARTITION = 2**14
_MAX_PARTITIONS = 2**10  # Each is a file, which is opened for every piece that is added.
_ROWS_PER_PIECE = 32
_ROWS_AT_ONCE = 2**13
_SAMPLES = 64


def num_partitions(num_rows: int) -> int:
    """Return how many partitions so many rows take; above 2**24 rows they grow instead."""
    return min(max(1, -(-num_rows // ROWS_PER_PARTITION)), _MAX_PARTITIONS)


def gathered(tables: Iterable[pa.Table], partitions: int) -> Iterator[pa.Table]:
    """Put tables together until their rows are worth being spread over so many partitions."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= max(_ROWS_AT_ONCE, _ROWS_PER_PIECE * partitions):
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


@dataclass(frozen=True, slots=True)
class Spread:
    """Rows on their way into partitions."""

    folder: Path
    name: str
    """Of the files, before the number."""
    schema: pa.Schema

    def add(self, rows: pa.Table, numbers: NDArray[np.int64]) -> None:
        """Append every row to the partition that `numbers`, (N,), has for it."""
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        rows = rows.take(pa.array(order))
        borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for first, stop in pairwise(borders):
            if stop > first:
                _append(self._path(numbers[first]), rows.slice(first, stop - first))

    def pop(self, number: int) -> pa.Table:
        """Read and remove a partition, its rows in the order in which they were added."""
        path = self._path(number)
        batches: list[pa.RecordBatch] = []
        if path.exists():
            with path.open("rb") as file:
                size = path.stat().st_size
                while file.tell() < size:
                    batches.extend(pa.ipc.open_stream(file))
            path.unlink()
        return pa.Table.from_batches(batches, self.schema)

    def _path(self, number: Any) -> Path:
        return self.folder / f"{self.name}-{number:05}.arrows"


def sample(values: NDArray[Any], num_rows: int) -> NDArray[Any]:
    """Take evenly placed values, so many that all of `num_rows` give some for each partition."""
    step = max(1, num_rows // (_SAMPLES * num_partitions(num_rows)))
    return values[::step].copy()  # A view would hold on to all of them.


def borders_of(samples: Sequence[NDArray[Any]], partitions: int) -> NDArray[Any]:
    """Choose the borders of partitions that hold about as much each, in order of the values."""
    if partitions == 1:
        return np.empty(0)
    values = np.sort(np.concatenate(samples))
    return values[np.arange(1, partitions) * len(values) // partitions]


def partitions_of(values: NDArray[Any], borders: NDArray[Any]) -> NDArray[np.int64]:
    """Return the partition of each value, int64 (N,)."""
    return np.searchsorted(borders, values, side="right")


def _append(path: Path, rows: pa.Table) -> None:
    """Append rows to a file, as a stream of their own: thousands of files cannot stay open."""
    with path.open("ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_table(rows)
