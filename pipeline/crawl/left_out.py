"""What is told of the inputs that no shard holds: a line for each, and pictures of some."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.atomic import open_atomic, write_atomic
from pipeline.crawl.dedupe import content_hashes
from pipeline.crawl.parts import payload_path, read_payload
from pipeline.crawl.reduce import thumbnail_of

LEDGER_NAME = "ledger.jsonl"
PICTURES_NAME = "left_out.parquet"
_PICTURES = 24
"""Most thumbnails of one kind."""
_ROWS_AT_ONCE = 2**14
_SHOWN = ["path", "source", "verdict", "reason", "winner", "near"]


def write_ledger(left_out: pa.Table, out: Path) -> None:
    """Write ledger.jsonl: path, verdict, and what else is known, in order of the path."""
    with open_atomic(out / LEDGER_NAME) as file:
        for start in range(0, len(left_out), _ROWS_AT_ONCE):
            rows = left_out.slice(start, _ROWS_AT_ONCE).select(_SHOWN).to_pylist()
            file.write("".join(json.dumps(_line(row)) + "\n" for row in rows).encode())


def write_pictures(left_out: pa.Table, parts: Path, out: Path) -> None:
    """Write left_out.parquet: thumbnails of each verdict and reason, the first by content hash."""
    rows = _pick(left_out)
    thumbnails = [thumbnail_of(_read(parts, row)) for row in rows.to_pylist()]
    shown = rows.select([*_SHOWN, "content_hash"])
    table = shown.append_column("thumbnail", pa.array(thumbnails, pa.binary()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", write_statistics=False)
    write_atomic(out / PICTURES_NAME, sink.getvalue())


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None and value is not False}


def _pick(left_out: pa.Table) -> pa.Table:
    pictured = left_out.filter(pc.greater(left_out.column("size"), 0))
    kinds = pictured.group_by(["verdict", "reason", "near"]).aggregate([]).to_pylist()
    picked = []
    for kind in sorted(kinds, key=str):
        same = [pc.equal(pictured.column(key), kind[key]) for key in ("verdict", "near")]
        reason = pictured.column("reason")
        same.append(
            pc.is_null(reason) if kind["reason"] is None else pc.equal(reason, kind["reason"])
        )
        rows = pictured.filter(pc.and_(pc.and_(*same[:2]), pc.fill_null(same[2], False)))
        high, low = content_hashes(rows).T
        order = np.lexsort((np.arange(len(rows)), low, high))  # Equal bytes: by path.
        picked.append(rows.take(pa.array(order[:_PICTURES])))
    return pa.concat_tables(picked) if picked else pictured


def _read(parts: Path, row: dict[str, Any]) -> bytes:
    with payload_path(parts, row["part"].hex()).open("rb") as file:
        return read_payload(file, row, row["path"])
