"""Write one shard from the plan: tar, index, ledger and report; whole or not at all."""

import hashlib
import io
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.atomic import open_atomic, write_atomic
from pipeline.config import parse
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import FORMAT_VERSION, payload_path, read_payload
from pipeline.ingest.plan import Plan, rows_of
from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import ShardInfo
from pipeline.shards.tar import walk_tar
from pipeline.shards.writer import write_samples

_KEY_DIGITS = 20  # 80 bits: a billion images meet by chance once in two million runs.
_LEDGER = ["name", "source", "format", "width", "height", "as_is", "notes", "label", "caption"]


class ShardReport(ShardInfo):
    """Proof that a shard is whole: written last, next to it."""

    ledger_sha256: str
    """Of the table of its inputs."""
    plan_id: str
    """Of what the shard holds: equal ids give equal bytes."""


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Which rows of the plan a shard holds, and where it goes."""

    folder: Path
    number: int
    plan: Path
    """Folder of the plan's tables."""
    parts: Path
    """Folder of the parts."""
    rows: tuple[int, int]
    """First image in the plan's order, and the one behind the last."""
    classes: tuple[str, ...] | None
    config: ShardConfig

    @property
    def stem(self) -> str:
        """Name of the shard's files without the ending."""
        return f"shard-{self.number:06d}"

    @property
    def tar_path(self) -> Path:
        """The shard itself."""
        return self.folder / f"{self.stem}.tar"

    @property
    def index_path(self) -> Path:
        """Its index."""
        return self.folder / f"{self.stem}.parquet"

    @property
    def ledger_path(self) -> Path:
        """The table of its inputs."""
        return self.folder / f"{self.stem}.ledger.parquet"

    @property
    def report_path(self) -> Path:
        """Its report."""
        return self.folder / f"{self.stem}.json"


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    image: bytes
    about: dict[str, Any]
    """What the shard says of it."""
    label: int
    """Class number, -1 where there is none."""


def shard_specs(plan: Plan, folder: Path, parts: Path, config: ShardConfig) -> list[ShardSpec]:
    """Name the shards of `plan` in order."""
    return [
        ShardSpec(folder, number, plan.folder, parts, rows, plan.classes, config)
        for number, rows in enumerate(pairwise(plan.borders))
    ]


def write_shard(spec: ShardSpec) -> ShardReport:
    """Write the shard of `spec`, or return at once when it is already there.

    The index is made by walking the finished tar, so an offset can only be what was written.

    Raises:
        DamageError: A stored image is not what its part was written with; the part is given up, so
            that a resumed run makes it anew.
    """
    rows = rows_of(spec.plan, *spec.rows)
    plan_id = _plan_id(rows, spec)
    done = finished_report(spec)
    if done is not None and done.plan_id == plan_id:
        return done
    spec.report_path.unlink(missing_ok=True)  # It must never vouch for files it was not made from.
    samples = _samples(rows, spec)
    with open_atomic(spec.tar_path) as file:
        write_samples(file, ((one.key, _files(one, spec.config.store_as)) for one in samples))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            with memoryview(tar) as buffer:
                index = encode_index(_index_tar(buffer, samples, spec))
                sha256 = hashlib.sha256(buffer).hexdigest()
            num_bytes = len(tar)
        ledger = _encode_ledger(rows, samples)
        write_atomic(spec.ledger_path, ledger)
        write_atomic(spec.index_path, index)
    report = ShardReport(
        name=spec.tar_path.name,
        index=spec.index_path.name,
        num_samples=len(samples),
        num_bytes=num_bytes,
        sha256=sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
        ledger=spec.ledger_path.name,
        ledger_sha256=hashlib.sha256(ledger).hexdigest(),
        plan_id=plan_id,
    )
    write_atomic(spec.report_path, report.model_dump_json(indent=1).encode())
    return report


def finished_report(spec: ShardSpec) -> ShardReport | None:
    """Read the report of a shard that is there and whole."""
    return read_report(spec.report_path)


def read_report(path: Path) -> ShardReport | None:
    """Read the report at `path` where its tar, index and ledger lie beside it as it says."""
    try:
        report = parse(ShardReport, json.loads(path.read_text(encoding="utf-8")), str(path))
        num_bytes = (path.parent / report.name).stat().st_size
        index = hashlib.sha256((path.parent / report.index).read_bytes()).hexdigest()
        ledger = hashlib.sha256((path.parent / str(report.ledger)).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    found = (num_bytes, index, ledger)
    wanted = (report.num_bytes, report.index_sha256, report.ledger_sha256)
    return report if found == wanted else None


def _plan_id(rows: pa.Table, spec: ShardSpec) -> str:
    """Name what the shard must hold; where the parts keep it is no part of that."""
    known = rows.drop_columns(["part", "offset"]).to_pylist()
    text = json.dumps(
        [FORMAT_VERSION, spec.config.model_dump(), spec.classes, known], default=bytes.hex
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _samples(rows: pa.Table, spec: ShardSpec) -> list[_Sample]:
    table = rows.to_pylist()
    numbers = {name: number for number, name in enumerate(spec.classes or ())}
    images = _gather(table, spec.parts)
    samples = []
    for row, image in zip(table, images, strict=True):
        about = {
            "source": row["name"],
            "width": row["stored_width"],
            "height": row["stored_height"],
            "label": row["label"] if spec.classes else None,
            "caption": row["caption"],
            "metadata": json.loads(row["metadata"] or "null"),
        }
        about = {key: value for key, value in about.items() if value is not None}
        key = row["content_hash"].hex()[:_KEY_DIGITS]
        samples.append(_Sample(key, image, about, numbers.get(row["label"], -1)))
    return samples


def _gather(table: Sequence[dict[str, Any]], parts: Path) -> list[bytes]:
    """Read the stored images, each part in one go and forward; return them in order of `table`."""
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


def _files(sample: _Sample, store_as: str) -> dict[str, bytes]:
    about = json.dumps(sample.about, sort_keys=True).encode()
    return {_ENDINGS[store_as]: sample.image, "json": about}


_ENDINGS = {"jpeg": "jpg", "webp": "webp"}


def _index_tar(buffer: memoryview, samples: Sequence[_Sample], spec: ShardSpec) -> ShardIndex:
    members = list(walk_tar(buffer, spec.tar_path.name))
    endings = sorted([_ENDINGS[spec.config.store_as], "json"])
    names = [f"{sample.key}.{ending}" for sample in samples for ending in endings]
    assert [member.name for member in members] == names, "the writer changed the order"
    images = [m for m in members if not m.name.endswith(".json")]
    hashes = [xxhash.xxh3_64_intdigest(buffer[m.offset : m.offset + m.size]) for m in images]
    starts = np.array([member.start for member in members[::2]], np.int64)
    return ShardIndex(
        keys=tuple(sample.key for sample in samples),
        starts=starts,
        offsets=np.array([member.offset for member in images], np.int64),
        sizes=np.array([member.size for member in images], np.int64),
        widths=np.array([sample.about["width"] for sample in samples], np.int32),
        heights=np.array([sample.about["height"] for sample in samples], np.int32),
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(buffer, starts),
        labels=np.array([sample.label for sample in samples], np.int32),
    )


def _encode_ledger(rows: pa.Table, samples: Sequence[_Sample]) -> bytes:
    """Serialise what is known of the shard's inputs to Parquet, one row a sample."""
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
