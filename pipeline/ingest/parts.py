"""A chunk of a crawl becomes a part: the stored images, and a table of all inputs.

A part is complete or does not exist: its table is written last, and records the size of the
payload file.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.atomic import open_atomic
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.sandbox import CAPACITY, Sandbox
from pipeline.ingest.item import Item, Verdict
from pipeline.ingest.sources.chunks import read_chunk
from pipeline.ingest.sources.inputs import Chunk
from pipeline.shards.damage import DamageError
from pipeline.shards.labels import plain_text

FORMAT_VERSION = 8
"""Raise it when equal inputs and settings would give different bytes: older parts and shards are
then made again."""

HASH = pa.binary(16)
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("source", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("content_hash", HASH),  # big-endian; null if it was not read
        ("part", HASH),
        ("offset", pa.int64()),  # of the stored image or else the thumbnail, in the payloads
        ("size", pa.int64()),
        ("stored_hash", pa.uint64()),  # of those bytes
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("as_is", pa.bool_()),
        ("notes", pa.list_(pa.string())),
        ("label", pa.string()),
        ("is_inferred", pa.bool_()),  # whether the label is only a folder's name
        ("caption", pa.string()),
        ("metadata", pa.string()),  # JSON
        ("near_words", pa.binary()),  # little-endian uint64; null where not requested
    ]
)
_ROWS_PER_BATCH = 1024
_GROUP_INPUTS = 16

Examine = Callable[[Sequence[bytes]], Sequence[Verdict]]


@dataclass(frozen=True)
class PartSpec:
    """Everything that determines a part, and its folder."""

    folder: Path
    chunk: Chunk
    config: ShardConfig

    @functools.cached_property
    def id(self) -> str:
        """32 hex digits: equal ids give equal parts."""
        text = json.dumps([FORMAT_VERSION, self.config.model_dump(), self.chunk.id])
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def table_path(self) -> Path:
        """Path of the table of its inputs."""
        return self.folder / f"{self.id}.parquet"


@dataclass(frozen=True, slots=True)
class PartReport:
    """Counts of a part's inputs by outcome, before duplicates are known."""

    inputs: int
    accepted: int
    quarantined: int
    filtered: int
    notes_dropped: Mapping[str, int] = field(default_factory=dict)
    """Members of archives that are no inputs and say nothing, by reason."""


def payload_path(folder: Path, part: str) -> Path:
    """Return the path of a part's payloads: its stored images and thumbnails."""
    return folder / f"{part}.bin"


def read_payload(file: BinaryIO, row: Mapping[str, Any], name: str) -> bytes:
    """Read the payload of an input.

    Args:
        file: The part's payloads.
        row: Row of the input: offset, size and stored_hash.
        name: Name of the input, for the message.

    Raises:
        DamageError: It is not what was written; the part is discarded, so that a resumed run makes
            it again.
    """
    file.seek(row["offset"])
    data = file.read(row["size"])
    if xxhash.xxh3_64_intdigest(data) != row["stored_hash"]:
        Path(file.name).with_suffix(".parquet").unlink(missing_ok=True)
        raise DamageError(
            f"{file.name}: the {row['size']} bytes at {row['offset']} ({name}) are not what was "
            "written there. Run the same command again with --resume."
        )
    return data


def make_part(spec: PartSpec, examine: Examine | None = None) -> PartReport:
    """Read, judge and store the inputs of a chunk, or return at once if the part exists.

    Args:
        spec: What is read, and how it is judged.
        examine: Judges the bytes of a few inputs; by default in a sandbox that is kept between
            calls.
    """
    done = finished_report(spec)
    if done is not None:
        return done
    examine = examine or _sandbox(spec.config).examine
    dropped: Counter[str] = Counter()
    items = read_chunk(spec.chunk, max_bytes=spec.config.max_bytes, dropped=dropped)
    payloads = payload_path(spec.folder, spec.id)
    with open_atomic(payloads, lasting=False) as file:  # `read_payload` verifies it.
        batches = list(_batches(_rows(items, examine, spec, file)))
    table = pa.Table.from_batches(batches, SCHEMA)
    counts = _count(table)
    notes = dict(sorted(dropped.items()))
    report = {"payload_bytes": payloads.stat().st_size, "notes_dropped": notes, **counts}
    table = table.replace_schema_metadata({"part": json.dumps(report)})
    with open_atomic(spec.table_path) as file:
        pq.write_table(table, file, compression="zstd", write_statistics=False)
    return PartReport(**counts, notes_dropped=notes)


def finished_report(spec: PartSpec) -> PartReport | None:
    """Read the report of a part; None unless the part is complete."""
    try:
        report = json.loads(pq.read_schema(spec.table_path).metadata[b"part"])
        num_bytes = payload_path(spec.folder, spec.id).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if report.pop("payload_bytes", None) != num_bytes:
        return None
    return PartReport(**report)


def close_sandbox() -> None:
    """End the sandbox that `make_part` has kept in this process, if any."""
    while _open:
        _open.pop().close()
    _sandbox.cache_clear()


_open: list[Sandbox] = []


@functools.lru_cache(maxsize=1)
def _sandbox(config: ShardConfig) -> Sandbox:
    while _open:
        _open.pop().close()  # It has another configuration.
    _open.append(Sandbox(config))
    return _open[0]


def _rows(
    items: Iterable[Item], examine: Examine, spec: PartSpec, file: BinaryIO
) -> Iterator[dict[str, Any]]:
    part = bytes.fromhex(spec.id)
    for item, verdict in _judge(items, examine):
        payload = verdict.stored or verdict.thumbnail
        yield {
            "part": part,
            "source": spec.chunk.source,
            "offset": file.tell(),
            "size": len(payload),
            "stored_hash": xxhash.xxh3_64_intdigest(payload),
            **_describe(item, verdict),
        }
        file.write(payload)


def _judge(items: Iterable[Item], examine: Examine) -> Iterator[tuple[Item, Verdict]]:
    for group in _groups(items):
        verdicts = iter(examine([item.data for item in group if not item.problem]))
        for item in group:
            problem = item.problem
            yield item, Verdict("quarantined", problem) if problem else next(verdicts)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Group as many items as are judged in one exchange."""
    group: list[Item] = []
    size = 0
    for item in items:
        size += len(item.data)
        if group and (len(group) == _GROUP_INPUTS or size > CAPACITY):
            yield group
            group, size = [], len(item.data)
        group.append(item)
    if group:
        yield group


def _describe(item: Item, verdict: Verdict) -> dict[str, Any]:
    words = verdict.near_words
    metadata = dict(sorted(item.metadata.items()))
    return {
        "name": item.name,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "content_hash": bytes.fromhex(verdict.content_hash) or None,
        "format": verdict.image_format,
        "width": verdict.width,
        "height": verdict.height,
        "stored_width": verdict.stored_width,
        "stored_height": verdict.stored_height,
        "as_is": verdict.as_is,
        "notes": sorted({*verdict.notes, *item.notes}),
        "label": item.label and plain_text(item.label),
        "is_inferred": item.is_inferred,
        "caption": item.caption and plain_text(item.caption),
        "metadata": json.dumps(metadata) if metadata else None,
        "near_words": None if words is None else words.astype("<u8").tobytes(),
    }


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    waiting: list[dict[str, Any]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _ROWS_PER_BATCH:
            yield pa.RecordBatch.from_pylist(waiting, SCHEMA)
            waiting = []
    yield pa.RecordBatch.from_pylist(waiting, SCHEMA)


def _count(table: pa.Table) -> dict[str, int]:
    outcomes = table.column("outcome").to_pylist()
    verdicts = ("accepted", "quarantined", "filtered")
    return {"inputs": len(outcomes), **{verdict: outcomes.count(verdict) for verdict in verdicts}}
