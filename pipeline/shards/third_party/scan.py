"""Scan one third-party shard: members, samples, images and labels into an index."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from pydantic import Field

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchError, map_file
from pipeline.remote.location import is_remote, redact_url
from pipeline.shards.headers import HeaderError, read_size
from pipeline.shards.index import ShardIndex, encode_index, hash_spans, kept_files, read_index
from pipeline.shards.labels import number_of, sort_classes
from pipeline.shards.members import (
    MAX_NOTE_BYTES,
    Gathered,
    Sample,
    ShapedInput,
    gather,
    resolve,
    split_name,
)
from pipeline.shards.samples import RawSample, plain_key, read_label
from pipeline.shards.tar import Member, shard_error, walk_tar
from pipeline.shards.third_party.listing import ask_filesystem
from pipeline.shards.writer import ShardReport, read_report, write_report

_FORMAT_VERSION = 3  # Raise when an equal shard would give another index.
_NAME_LENGTH = 80  # of 255 that file systems allow; hashes and endings follow
_GZIP = b"\x1f\x8b"
_IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp"))
"""Of images that the trainer decodes."""
_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "blob_id")
"""Keys under which fsspec's file systems report a file's version."""


class ShardRecord(ShardReport):
    """Proof that the index of a shard is complete, with what else the scan found."""

    num_members: int = Field(ge=0)
    names: tuple[str, ...]
    """Classes of the samples, sorted; empty if labels are numbers or missing."""
    numbers: tuple[int, ...]
    """Number of each of `names` in the index."""
    num_classes: int = Field(ge=0)
    """One more than the largest numeric label, else 0."""
    notes_dropped: dict[str, int] = Field(default_factory=dict)
    """Number of members that are no inputs and say nothing, by reason."""
    notes: dict[str, int] = Field(default_factory=dict)
    """Number of samples by note: label_list, ... for labels that cannot be used."""


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """Everything that determines a scan and where it is stored."""

    name: str
    """Absolute path or URL."""
    folder: Path
    """Folder of records and indexes."""
    fast: bool
    """Read only the tar's headers; the loader does the rest on first use."""


@dataclass(slots=True)
class _Rows:
    """Columns of an index, as they grow."""

    keys: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height, px."""
    hashes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Members that say nothing, by reason."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Outcome of scanning a shard."""

    record: ShardRecord
    is_new: bool
    """Whether the shard was read; otherwise an earlier scan still holds."""


def scan_shard(spec: ScanSpec) -> Scan:
    """Scan the shard of `spec` and write index and record, unless it is unchanged.

    Raises:
        ShardError: The shard is damaged; nothing was written.
        ConfigError: It is missing, changed during the scan, or has unusable labels.
        OSError: It cannot be read.
    """
    stamp = _read_stamp(spec.name)
    plan_id = f"{_FORMAT_VERSION} {'fast' if spec.fast else 'whole'} {stamp}" if stamp else ""
    known = read_report(record_path(spec.folder, spec.name), ShardRecord, plan_id)
    if known is not None and known.name == spec.name and stamp:
        return Scan(known, is_new=False)
    try:
        buffer = map_file(spec.name)
    except FetchError as error:
        raise OSError(str(error)) from error
    record, index = _scan(buffer, spec, plan_id)
    if _read_stamp(spec.name) != stamp:
        raise ConfigError(
            f"shard (={redact_url(spec.name)}) changed while it was read; wait for it."
        )
    return Scan(write_record(spec.folder, record, index), is_new=True)


def _read_stamp(name: str) -> str:
    """Identify a version of a shard without reading it; empty if there is no way.

    Raises:
        ConfigError: There is no such file.
        OSError: The request failed.
    """
    if not is_remote(name):
        try:
            status = Path(name).stat()
        except OSError as error:
            raise ConfigError(f"shard (={name}) cannot be read: {error.strerror}.") from None
        return f"{status.st_size} {status.st_mtime_ns}"
    info = ask_filesystem(name, "info")
    tags = [f"{tag}={info[tag]}" for tag in _TAGS if info.get(tag)]
    return f"{info.get('size')} {' '.join(tags)}" if tags else ""


def _scan(buffer: memoryview, spec: ScanSpec, plan_id: str) -> tuple[ShardRecord, ShardIndex]:
    if buffer[:2] == _GZIP:
        raise shard_error(spec.name, 0, "it is compressed; unpack it to read single samples")
    members = list(walk_tar(buffer, spec.name))
    gathered = gather([member.name for member in members])
    if gathered.returns is not None:
        member = members[gathered.returns]
        key = split_name(member.name)[0]
        raise shard_error(
            spec.name, member.start, f"key {key!r} occurs twice, again as {member.name!r}"
        )
    rows = _Rows()
    _add_all(rows, gathered, members, buffer, spec)
    names, numbers = _number_labels(rows.labels, spec.name)
    record = ShardRecord(
        name=spec.name,
        num_bytes=len(buffer),
        sha256=None if spec.fast else hashlib.sha256(buffer).hexdigest(),
        num_members=len(members),
        num_samples=len(rows.keys),
        index="",
        index_sha256="",
        plan_id=plan_id,
        names=names,
        numbers=tuple(range(len(names))),
        num_classes=0 if names else 1 + max(numbers, default=-1),
        notes=dict(sorted(rows.notes.items())),
        left_out=tuple(rows.left_out),
        notes_dropped=dict(sorted(rows.dropped.items())),
    )
    return record, _make_index(rows, numbers, buffer, fast=spec.fast)


def _add_all(
    rows: _Rows, gathered: Gathered, members: Sequence[Member], buffer: memoryview, spec: ScanSpec
) -> None:
    """Add the images of all samples in order of the tar, each with a key of its own."""
    rows.dropped.update(reason for _, reason in gathered.junk)
    for sample in gathered.samples:
        images, num_unread = _images_of(tuple(sample.endings))
        if num_unread:
            rows.dropped["not_read"] += num_unread
        first = members[sample.places[0]]
        if not (images and sample.key):
            key = plain_key(sample.key or first.name)
            rows.left_out.append((key, "no_image" if sample.key else "no_key"))
            continue
        keys, starts = [sample.key], [first.start]
        if len(images) > 1:
            keys, starts = _apart(sample, images, members)
        for one, key, start in zip(images, keys, starts, strict=True):
            notes = {}
            for ending, i in one.notes:
                note = members[sample.places[i]]
                if note.size > MAX_NOTE_BYTES:
                    rows.dropped["too_big"] += 1
                else:
                    notes[ending] = note
            image = members[sample.places[one.image]]
            _add(rows, RawSample(key, start, notes), image, buffer, spec)


@lru_cache(4096)
def _images_of(endings: tuple[str, ...]) -> tuple[tuple[ShapedInput, ...], int]:
    """List a sample's images that the trainer decodes; count what is not read beside them."""
    inputs, unread = resolve(endings)
    images = tuple(one for one in inputs if endings[one.image].rpartition(".")[2] in _IMAGE_ENDINGS)
    return images, len(unread) + (len(inputs) - len(images) if images else 0)


def _apart(
    sample: Sample, images: Sequence[ShapedInput], members: Sequence[Member]
) -> tuple[list[str], list[int]]:
    """Name several images of one key, and find the first byte of each one's span.

    A span begins after the image before, with the first note of its own image there.
    """
    names = [members[sample.places[one.image]].name for one in images]
    stems = [name.rpartition(".")[0] for name in names]
    firsts = [0]
    for before, one in pairwise(images):
        firsts.append(min([i for _, i in one.notes if before.image < i < one.image] + [one.image]))
    starts = [members[sample.places[i]].start for i in firsts]
    return stems if len(set(stems)) == len(stems) else names, starts


def _add(rows: _Rows, sample: RawSample, image: Member, buffer: memoryview, spec: ScanSpec) -> None:
    """Add an image to the index or to the excluded ones."""
    key = plain_key(sample.key)
    if not image.size:
        rows.left_out.append((key, "empty"))
        return
    size, digest = (0, 0), 0
    if not spec.fast:
        payload = buffer[image.offset : image.offset + image.size]
        try:
            size = read_size(payload)
        except HeaderError as error:
            rows.left_out.append((key, error.reason))
            return
        digest = xxhash.xxh3_64_intdigest(payload)
    rows.keys.append(key)
    rows.starts.append(sample.start)
    rows.images.append((image.offset, image.size))
    rows.sizes.append(size)
    rows.hashes.append(digest)
    label = read_label(buffer, sample, spec.name)
    rows.labels.append(label.name)
    if label.problem is not None:
        rows.notes.update(label.notes)


def _number_labels(labels: list[str | None], shard: str) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names, sorted, and the number of every label, -1 for none."""
    classes = {label: number_of(label) for label in labels if label is not None}
    names = tuple(sort_classes(name for name, number in classes.items() if number is None))
    if 0 < len(names) < len(classes):
        raise ConfigError(
            f"shard (={shard}) has both numbers and names as labels; write it with one of them."
        )
    numbers: Mapping[str, int | None] = classes
    if names:
        numbers = {name: number for number, name in enumerate(names)}
    return names, [-1 if label is None else numbers[label] or 0 for label in labels]


def _make_index(rows: _Rows, labels: list[int], buffer: memoryview, *, fast: bool) -> ShardIndex:
    starts = np.array(rows.starts, np.int64)
    starts[:1] = 0  # What precedes the first sample belongs to it, so that spans cover the tar.
    offsets, bytes_ = np.array(rows.images, np.int64).reshape(-1, 2).T
    widths, heights = np.array(rows.sizes, np.int32).reshape(-1, 2).T
    return ShardIndex(
        keys=tuple(rows.keys),
        starts=starts,
        offsets=offsets,
        sizes=bytes_,
        widths=widths,
        heights=heights,
        hashes=np.array(rows.hashes, np.uint64),
        span_hashes=np.zeros(len(starts), np.uint64) if fast else hash_spans(buffer, starts),
        labels=np.array(labels, np.int32),
    )


def record_path(folder: Path, name: str) -> Path:
    """Return the path of a shard's record, distinct even for equal file names."""
    stem = re.split(r"[?#]", name)[0].rstrip("/").rpartition("/")[2].removesuffix(".tar")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_NAME_LENGTH]
    return folder / f"{plain}-{xxhash.xxh3_64_hexdigest(name.encode())}.json"


def write_record(folder: Path, record: ShardRecord, index: ShardIndex) -> ShardRecord:
    """Write an index and then the record, with the index filled in.

    Indexes are named after their content, so one that an older manifest refers to stays.
    """
    encoded = encode_index(index)
    digest = hashlib.sha256(encoded).hexdigest()
    path = record_path(folder, record.name)
    index_path = path.with_name(f"{path.stem}-{digest[:8]}.parquet")
    for stale in kept_files(index_path):  # The shard may have changed though its headers did not.
        stale.unlink(missing_ok=True)
    write_atomic(index_path, encoded)
    record = record.model_copy(update={"index": index_path.name, "index_sha256": digest})
    write_report(path, record)
    return record


def wanted_numbers(record: ShardRecord, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the `numbers` that match `classes`."""
    position = {name: number for number, name in enumerate(classes)}
    return tuple(position[name] for name in record.names)


def renumber(folder: Path, record: ShardRecord, classes: Sequence[str]) -> ShardRecord:
    """Renumber the labels of an index to `classes`, those of all shards."""
    numbers = wanted_numbers(record, classes)
    index = read_index(folder / record.index, sha256=record.index_sha256)
    new = np.full(max(record.numbers) + 2, -1, np.int32)  # A label of -1 reads the last.
    new[list(record.numbers)] = numbers
    record = record.model_copy(update={"numbers": numbers})
    return write_record(folder, record, replace(index, labels=new[index.labels]))
