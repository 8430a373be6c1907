"""Exact duplicates and placeholders: equal bytes are one image, and very many are none."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of accepted rows, as row numbers; together they name every row once."""

    kept: NDArray[np.int64]
    """(K,), one row for each content, in order of the content hash."""
    repeats: NDArray[np.int64]
    """(R,), rows whose bytes a kept row has."""
    winners: NDArray[np.int64]
    """(R,), position in `kept` of the row that stands for each repeat."""
    placeholders: NDArray[np.int64]
    """(P,), rows whose bytes too many rows have."""


def settle(accepted: pa.Table, max_repeats: int | None) -> Settled:
    """Choose which of several inputs with equal bytes is kept.

    A labelled one comes before one without a label, then the smaller name: the answer does not
    depend on the order of the rows.

    Args:
        accepted: Columns name, label, content_hash.
        max_repeats: Contents that more rows have are placeholders; None for no such bound.
    """
    high, low = content_hashes(accepted).T
    unlabelled = accepted.column("label").is_null().to_numpy()
    order = np.lexsort((name_ranks(accepted.column("name")), unlabelled, low, high))
    same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    is_first = np.concatenate([[True], ~same])[: len(order)]
    group = np.cumsum(is_first) - 1
    is_placeholder = np.zeros(len(order), bool)
    if max_repeats is not None:
        is_placeholder = np.bincount(group, minlength=1)[group] > max_repeats
    is_kept = is_first & ~is_placeholder
    is_repeat = ~is_first & ~is_placeholder
    position = np.cumsum(is_kept) - 1  # Of the last kept row so far: the one of the same content.
    return Settled(order[is_kept], order[is_repeat], position[is_repeat], order[is_placeholder])


def content_hashes(rows: pa.Table) -> NDArray[np.uint64]:
    """Return the content hashes, uint64 (N, 2), most significant half first."""
    pieces = []
    for chunk in rows.column("content_hash").chunks:
        buffer = chunk.buffers()[1]
        first = chunk.offset * _HASH_BYTES
        piece = np.frombuffer(buffer, np.uint8)[first : first + len(chunk) * _HASH_BYTES]
        pieces.append(piece.view(">u8").reshape(-1, 2).astype(np.uint64))
    return np.concatenate(pieces) if pieces else np.empty((0, 2), np.uint64)


def name_ranks(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the place of every name in their order, int64 (N,)."""
    order = pc.sort_indices(names).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
