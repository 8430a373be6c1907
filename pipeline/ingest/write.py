"""Write one shard of the plan: tar, index, ledger table and report."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic import write_atomic
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import FORMAT_VERSION, payload_path, read_payload
from pipeline.ingest.plan import Plan, rows_of
from pipeline.shards.writer import (
    KEY_DIGITS,
    NewSample,
    ShardReport,
    read_report,
    write_report,
    write_shard,
)

_ENDINGS = {"jpeg": "jpg", "webp": "webp"}
_LEDGER = ["name", "source", "format", "width", "height", "as_is", "notes", "label", "caption"]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Which rows of the plan a shard holds, and where it is written."""

    folder: Path
    number: int
    plan: Path
    """Folder of the plan's tables."""
    parts: Path
    """Folder of the parts."""
    rows: tuple[int, int]
    """First row and end row in the plan's order."""
    classes: tuple[str, ...] | None
    config: ShardConfig

    @property
    def stem(self) -> str:
        """Name of the shard's files without ending."""
        return f"shard-{self.number:06d}"

    def path(self, ending: str) -> Path:
        """Return the path of its tar, parquet (index), ledger.parquet or json (report)."""
        return self.folder / f"{self.stem}.{ending}"


def shard_specs(plan: Plan, folder: Path, parts: Path, config: ShardConfig) -> list[ShardSpec]:
    """Name the shards of `plan` in order."""
    return [
        ShardSpec(folder, number, plan.folder, parts, rows, plan.classes, config)
        for number, rows in enumerate(pairwise(plan.borders))
    ]


def make_shard(spec: ShardSpec) -> ShardReport:
    """Write the shard of `spec`, unless it is already there.

    Raises:
        DamageError: A stored image does not match its hash; its part is dropped, so that a resumed
            run makes it again.
    """
    rows = rows_of(spec.plan, *spec.rows)
    plan_id = _plan_id(rows, spec)
    done = read_report(spec.path("json"), ShardReport, plan_id)
    if done is not None:
        return done
    spec.path("json").unlink(missing_ok=True)  # It must not vouch for what it was not made from.
    samples = _samples(rows, spec)
    ledger = _encode_ledger(rows, samples)
    write_atomic(spec.path("ledger.parquet"), ledger)
    info = write_shard(spec.path("tar"), samples)
    report = ShardReport(
        **info.model_dump(exclude={"ledger"}),
        ledger=spec.path("ledger.parquet").name,
        ledger_sha256=hashlib.sha256(ledger).hexdigest(),
        plan_id=plan_id,
    )
    write_report(spec.path("json"), report)
    return report


def _plan_id(rows: pa.Table, spec: ShardSpec) -> str:
    """Hash what the shard must hold, but not where the parts keep it."""
    known = rows.drop_columns(["part", "offset"]).to_pylist()
    text = json.dumps(
        [FORMAT_VERSION, spec.config.model_dump(), spec.classes, known], default=bytes.hex
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _samples(rows: pa.Table, spec: ShardSpec) -> list[NewSample]:
    table = rows.to_pylist()
    numbers = {name: number for number, name in enumerate(spec.classes or ())}
    ending = _ENDINGS[spec.config.store_as]
    samples = []
    for row, image in zip(table, _gather(table, spec.parts), strict=True):
        about = {
            "source": row["name"],
            "width": row["stored_width"],
            "height": row["stored_height"],
            "label": row["label"] if spec.classes else None,
            "caption": row["caption"],
            "metadata": json.loads(row["metadata"] or "null"),
        }
        known = {key: value for key, value in about.items() if value is not None}
        files = {ending: image, "json": json.dumps(known, sort_keys=True).encode()}
        key = row["content_hash"].hex()[:KEY_DIGITS]
        size = row["stored_width"], row["stored_height"]
        samples.append(NewSample(key, files, ending, *size, numbers.get(row["label"], -1)))
    return samples


def _gather(table: Sequence[dict[str, Any]], parts: Path) -> list[bytes]:
    """Read the stored images, each part once and forward; returns them in order of `table`."""
    images = [b""] * len(table)
    order = sorted(range(len(table)), key=lambda i: (table[i]["part"], table[i]["offset"]))
    file, opened = None, None
    try:
        for i in order:
            row = table[i]
            if row["part"] != opened:
                if file is not None:
                    file.close()
                opened = row["part"]
                file = payload_path(parts, opened.hex()).open("rb", buffering=0)
            assert file is not None
            images[i] = read_payload(file, row, row["name"])
    finally:
        if file is not None:
            file.close()
    return images


def _encode_ledger(rows: pa.Table, samples: Sequence[NewSample]) -> bytes:
    """Serialize what is known of the shard's inputs to Parquet, one row per sample."""
    hashes = [digest.hex() for digest in rows.column("content_hash").to_pylist()]
    words = [
        None if blob is None else np.frombuffer(blob, "<u8")
        for blob in rows.column("near_words").to_pylist()
    ]
    columns = {
        "key": pa.array([sample.key for sample in samples]),
        **{name: rows.column(name) for name in _LEDGER},
        "content_hash": pa.array(hashes, pa.string()),
        "stored_hash": rows.column("stored_hash"),
        "near_words": pa.array(words, pa.list_(pa.uint64())),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", write_statistics=False)
    return sink.getvalue()
