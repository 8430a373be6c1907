"""The inputs that no shard holds, on disk: their winners are named, then all sorted by path."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ingest.exchange import ABOUT_LEFT_OUT, LEFT_OUT, Kept, left_out
from pipeline.ingest.spread import (
    Spread,
    borders_of,
    gathered,
    num_partitions,
    partitions_of,
    sample,
)

_UNNAMED = LEFT_OUT.append(pa.field("near", pa.bool_()))
NAMED = _UNNAMED.remove(_UNNAMED.get_field_index("winner_row")).append(
    pa.field("winner", pa.large_string())
)
"""Columns of the sorted table: path and source; verdict (quarantined, filtered or duplicate) and
reason; of a duplicate its winner, the path of the input in the shards that stands for it, and
whether it is near: looks like the winner rather than having its bytes; where the picture is."""

_ROWS_AT_ONCE = 2**14


class LeftOutRows:
    """Takes rows of LEFT_OUT in any order; in the end they are a table.

    Args:
        folder: Takes the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unnamed = folder / "unnamed.arrows"
        self._named = folder / "named.arrows"
        self._writer = pa.ipc.new_stream(str(self._unnamed), LEFT_OUT)

    def add(self, rows: pa.Table) -> None:
        """Take rows."""
        self._writer.write_table(rows)

    def finish(self, kept: Kept, near: NDArray[np.int64]) -> pa.Table:
        """Return all rows in order of the path: a table of NAMED, mapped from the disk.

        The winner of a duplicate is in the shards: where the input with the same bytes is itself a
        near duplicate, its winner is taken.

        Args:
            kept: The rows that are not left out, but for near duplicates.
            near: int64 (N,), of `near_rows`.
        """
        self._writer.close()
        total = self._name_winners(kept, near)
        path = self._folder / "left_out.arrow"
        with pa.ipc.new_file(str(path), NAMED) as writer:
            for rows in self._sorted(total):
                writer.write_table(rows)
        self._named.unlink()
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def _name_winners(self, kept: Kept, near: NDArray[np.int64]) -> int:
        """Write all rows with the names of their winners; return how many they are."""
        total = 0
        waiting = Spread(self._folder, "unnamed", _UNNAMED)
        with pa.ipc.new_stream(str(self._named), NAMED) as writer:
            found = chain(_read_stream(self._unnamed), _near_left_out(kept, near))
            for rows in gathered(found, len(kept.starts)):
                is_duplicate = pc.is_valid(rows.column("winner_row"))
                others = rows.filter(pc.invert(is_duplicate))
                others = others.append_column("near", pa.repeat(False, len(others)))
                writer.write_table(_named(others, pa.nulls(len(others), pa.large_string())))
                _spread(rows.filter(is_duplicate), waiting, kept, near)
                total += len(rows)
            for number, start in enumerate(kept.starts[:-1].tolist()):
                rows = waiting.pop(number)
                inside = rows.column("winner_row").to_numpy() - start
                names = kept.partition(number, ["name"]).column("name").take(pa.array(inside))
                writer.write_table(_named(rows, names.cast(pa.large_string())))
        self._unnamed.unlink()
        return total

    def _sorted(self, total: int) -> Iterator[pa.Table]:
        """Yield the named rows in order of the path, piece by piece."""
        partitions = num_partitions(total)
        paths = (rows.column("path").to_numpy() for rows in _read_stream(self._named))
        borders = borders_of([sample(piece, total) for piece in paths], partitions)
        spread = Spread(self._folder, "by_path", NAMED)
        for rows in gathered(_read_stream(self._named), partitions):
            spread.add(rows, partitions_of(rows.column("path").to_numpy(), borders))
        for number in range(partitions):
            rows = spread.pop(number)
            yield rows.take(pc.sort_indices(rows.column("path")))


def pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield slices of a table, each small enough to be worked on in memory."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows.slice(start, _ROWS_AT_ONCE)


def _read_stream(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pa.Table.from_batches([batch])


def _near_left_out(kept: Kept, near: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield the kept rows that look like another; their winner is found from their own row."""
    for start, part in kept.partitions(ABOUT_LEFT_OUT):
        rows = np.flatnonzero(near[start : start + len(part)] >= 0)
        yield left_out(part.take(pa.array(rows)), "duplicate", None, pa.array(rows + start))


def _spread(rows: pa.Table, waiting: Spread, kept: Kept, near: NDArray[np.int64]) -> None:
    """Spread duplicates by the partition that their winner in the shards is in."""
    winners = rows.column("winner_row").to_numpy()
    follows = near[winners]
    is_near = follows >= 0
    winners = np.where(is_near, follows, winners)
    place = LEFT_OUT.get_field_index("winner_row")
    rows = rows.set_column(place, LEFT_OUT.field(place), pa.array(winners))
    waiting.add(rows.append_column("near", pa.array(is_near)), kept.partitions_of(winners))


def _named(rows: pa.Table, winners: pa.ChunkedArray) -> pa.Table:
    return rows.drop_columns(["winner_row"]).append_column("winner", winners).select(NAMED.names)
