"""Which of the kept rows look like a better one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ingest.disk_arrays import new_array, release
from pipeline.ingest.exchange import Kept
from pipeline.ingest.near.hash import WORDS
from pipeline.ingest.near.search import Words, find_near
from pipeline.ingest.spread import Spread, borders_of, num_partitions, partitions_of, sample

_HALF = np.uint64(32)
_MOST = np.uint64(2**32 - 1)
_RANKED = pa.schema([("key", pa.uint64()), ("row", pa.int64())])


def near_rows(kept: Kept, folder: Path) -> NDArray[np.int64]:
    """Return the row that each kept row looks like, -1 where it stays: int64 (N,), in a file.

    Of rows that look alike the one with more pixels stays, then with more bytes, then with the
    smaller content hash.
    """
    words = _words(kept, folder)
    near = find_near(words, rank(kept, folder), folder)
    for name in ("words", "order"):
        (folder / f"{name}.npy").unlink()
    return near


def rank(kept: Kept, folder: Path) -> NDArray[np.int64]:
    """Order the kept rows, best first: int64 (N,), in a file."""
    num = len(kept)
    borders = borders_of([sample(keys, num) for _, keys in _keys(kept)], num_partitions(num))
    ranked = Spread(folder, "ranked", _RANKED)
    for start, keys in _keys(kept):
        rows = np.arange(start, start + len(keys))
        ranked.add(pa.table([keys, rows], schema=_RANKED), partitions_of(keys, borders))
    order = new_array(folder / "order.npy", np.int64, (num,))
    done = 0
    for number in range(num_partitions(num)):
        part = ranked.pop(number)
        best_first = np.argsort(part.column("key").to_numpy(), kind="stable")
        order[done : done + len(part)] = part.column("row").to_numpy()[best_first]
        done += len(part)
    return order


def _keys(kept: Kept) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the first row of every partition, and keys (uint64) that are small for good rows.

    From 2**32 pixels on, and from 4 GiB on, images are taken for equally large.
    """
    for start, part in kept.partitions(["width", "height", "size"]):
        width, height, size = (column.to_numpy().astype(np.uint64) for column in part.columns)
        yield start, ~(np.minimum(width * height, _MOST) << _HALF | np.minimum(size, _MOST))


def _words(kept: Kept, folder: Path) -> Words:
    """Gather the near words of the kept rows, uint64 (N, WORDS), in a file."""
    words = new_array(folder / "words.npy", np.uint64, (len(kept), WORDS))
    for start, part in kept.partitions(["near_words"]):
        blobs = part.column("near_words").to_pylist()
        words[start : start + len(part)] = np.frombuffer(b"".join(blobs), "<u8").reshape(-1, WORDS)
        release(words)
    return words
