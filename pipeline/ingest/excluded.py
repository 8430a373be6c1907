"""Report the inputs that no shard holds: a line for each, and pictures of some."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic import write_atomic
from pipeline.ingest.gate.encode import thumbnail_of
from pipeline.ingest.parts import payload_path, read_payload
from pipeline.shards.manifest import PICTURES_NAME, ledger_line

_COLUMNS = ["path", "source", "verdict", "reason", "winner", "near", "label", "label_conflict"]
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
    label: str | None = None
    """Label of a duplicate whose copies contradict each other."""
    label_conflict: tuple[str, ...] | None = None
    """All labels of those copies."""


def ledger_lines(excluded: pa.Table) -> Iterator[bytes]:
    """Serialise ledger.jsonl: path, verdict, and what else is known, in order of the path."""
    for rows in excluded.select(_COLUMNS).to_batches(_BATCH_ROWS):
        yield from map(ledger_line, rows.to_pylist())


def write_pictures(pictured: pa.Table, parts: Path, out: Path) -> None:
    """Write left_out.parquet: thumbnails of each verdict and reason, the first by content hash."""
    thumbnails = [thumbnail_of(_read(parts, row)) for row in pictured.to_pylist()]
    columns = pictured.select([*_COLUMNS, "content_hash"])
    table = columns.append_column("thumbnail", pa.array(thumbnails, pa.binary()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", write_statistics=False)
    write_atomic(out / PICTURES_NAME, sink.getvalue())


def _read(parts: Path, row: dict[str, Any]) -> bytes:
    with payload_path(parts, row["part"].hex()).open("rb") as file:
        return read_payload(file, row, row["path"])
