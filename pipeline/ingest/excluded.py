"""Report the inputs that no shard holds: a line for each, and pictures of some."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic import open_atomic, write_atomic
from pipeline.ingest.gate.encode import thumbnail_of
from pipeline.ingest.parts import payload_path, read_payload

LEDGER_NAME = "ledger.jsonl"
PICTURES_NAME = "left_out.parquet"
_COLUMNS = ["path", "source", "verdict", "reason", "winner", "near"]
_BATCH_ROWS = 2**14


@dataclass(frozen=True, slots=True)
class ExcludedInput:
    """An input that no shard holds: one line of `ledger.jsonl`."""

    path: str
    verdict: str
    """quarantined, filtered or duplicate."""
    reason: str | None
    winner: str | None
    """Path of the input in the shards that stands for a duplicate."""
    near: bool = False
    """Whether a duplicate looks like its winner rather than having its bytes."""
    source: str | None = None
    """Name of its source."""


def write_ledger(excluded: pa.Table, out: Path) -> None:
    """Write ledger.jsonl: path, verdict, and what else is known, in order of the path."""
    with open_atomic(out / LEDGER_NAME) as file:
        for rows in excluded.select(_COLUMNS).to_batches(_BATCH_ROWS):
            lines = (json.dumps(_line(row)) + "\n" for row in rows.to_pylist())
            file.write("".join(lines).encode())


def write_pictures(pictured: pa.Table, parts: Path, out: Path) -> None:
    """Write left_out.parquet: thumbnails of each verdict and reason, the first by content hash."""
    thumbnails = [thumbnail_of(_read(parts, row)) for row in pictured.to_pylist()]
    columns = pictured.select([*_COLUMNS, "content_hash"])
    table = columns.append_column("thumbnail", pa.array(thumbnails, pa.binary()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", write_statistics=False)
    write_atomic(out / PICTURES_NAME, sink.getvalue())


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None and value is not False}


def _read(parts: Path, row: dict[str, Any]) -> bytes:
    with payload_path(parts, row["part"].hex()).open("rb") as file:
        return read_payload(file, row, row["path"])
