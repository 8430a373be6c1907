"""What is told of the inputs that no shard holds: a line for each, and pictures of some."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.atomic import write_atomic
from pipeline.ingest.dedupe import content_hashes
from pipeline.ingest.gate.encode import thumbnail_of
from pipeline.ingest.left_out_rows import pieces
from pipeline.ingest.parts import payload_path, read_payload
from pipeline.shards.manifest import PICTURES_NAME, ledger_line

_PICTURES = 24
"""Most thumbnails of one kind."""
_SHOWN = ["path", "source", "verdict", "reason", "winner", "near"]


@dataclass(frozen=True, slots=True)
class ExcludedInput:
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


def ledger_lines(left_out: pa.Table) -> Iterator[bytes]:
    """Serialise ledger.jsonl: path, verdict, and what else is known, in order of the path."""
    for rows in pieces(left_out.select(_SHOWN)):
        yield from map(ledger_line, rows.to_pylist())


def write_pictures(left_out: pa.Table, parts: Path, out: Path) -> None:
    """Write left_out.parquet: thumbnails of each verdict and reason, the first by content hash."""
    rows = _pick(left_out)
    thumbnails = [thumbnail_of(_read(parts, row)) for row in rows.to_pylist()]
    shown = rows.select([*_SHOWN, "content_hash"])
    table = shown.append_column("thumbnail", pa.array(thumbnails, pa.binary()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", write_statistics=False)
    write_atomic(out / PICTURES_NAME, sink.getvalue())


def _pick(left_out: pa.Table) -> pa.Table:
    """Take the rows whose pictures are shown; no more than a piece is in memory."""
    keys = ["verdict", "reason", "near"]
    none = left_out.slice(0, 0)
    picked: dict[str, pa.Table] = {}
    for piece in pieces(left_out):
        pictured = piece.filter(pc.greater(piece.column("size"), 0))
        for kind in pictured.group_by(keys).aggregate([]).to_pylist():
            name = str([kind[key] for key in keys])
            found = pictured.filter(_is_of(pictured, kind))
            picked[name] = _first(pa.concat_tables([picked.get(name, none), found]))
    return pa.concat_tables([none, *(picked[name] for name in sorted(picked))])


def _is_of(rows: pa.Table, kind: dict[str, Any]) -> pa.ChunkedArray:
    reason = rows.column("reason")
    same = [pc.equal(rows.column(key), kind[key]) for key in ("verdict", "near")]
    is_reason = pc.is_null(reason) if kind["reason"] is None else pc.equal(reason, kind["reason"])
    return pc.and_(pc.and_(*same), pc.fill_null(is_reason, False))


def _first(rows: pa.Table) -> pa.Table:
    """Take the first rows by content hash; of equal bytes, those that stand first."""
    high, low = content_hashes(rows).T
    order = np.lexsort((np.arange(len(rows)), low, high))
    return rows.take(pa.array(order[:_PICTURES]))


def _read(parts: Path, row: dict[str, Any]) -> bytes:
    with payload_path(parts, row["part"].hex()).open("rb") as file:
        return read_payload(file, row, row["path"])
