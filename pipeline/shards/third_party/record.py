"""What is known of a scanned shard: kept beside its index, so that it is not read again."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from pydantic import Field

from pipeline.atomic import write_atomic
from pipeline.config import Config, parse
from pipeline.shards.index import ShardIndex, encode_index, read_index
from pipeline.shards.third_party.lazy_index import kept_files

_NAME_LENGTH = 80  # of 255 that file systems allow; hashes and endings follow


class ShardRecord(Config):
    """A shard that was scanned; written last, as the proof that its index is whole."""

    version: Literal[1]
    """Raise when an equal shard would give another index."""
    name: str
    """Absolute path or URL."""
    stamp: str
    """Tells whether the shard changed since; empty where that cannot be told."""
    fast: bool
    """Whether only the tar's headers were read."""
    num_bytes: int = Field(ge=0)
    sha256: str | None
    """Of the tar; None where `fast`."""
    num_members: int = Field(ge=0)
    num_inputs: int = Field(ge=0)
    """Samples looked at."""
    num_samples: int = Field(ge=0)
    """Samples in the index."""
    index: str
    """File name of the index."""
    index_sha256: str
    names: tuple[str, ...]
    """Classes of the samples, sorted; empty where labels are numbers or missing."""
    numbers: tuple[int, ...]
    """What stands in the index for each of `names`."""
    num_classes: int = Field(ge=0)
    """One more than the greatest label where labels are numbers, else 0."""
    left_out: tuple[tuple[str, str], ...]
    """Key and reason of every quarantined sample, in the order of the tar."""


def record_path(folder: Path, name: str) -> Path:
    """Where the record of the shard `name` lies; shards of equal file names do not meet there."""
    stem = re.split(r"[?#]", name)[0].rstrip("/").rpartition("/")[2].removesuffix(".tar")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_NAME_LENGTH]
    return folder / f"{plain}-{xxhash.xxh3_64_hexdigest(name.encode())}.json"


def read_record(folder: Path, name: str) -> ShardRecord | None:
    """Read the record of a shard; None unless it and the index it names are there and whole."""
    path = record_path(folder, name)
    try:
        record = parse(ShardRecord, json.loads(path.read_text(encoding="utf-8")), str(path))
        index = (folder / record.index).read_bytes()
    except (OSError, ValueError):
        return None
    is_whole = hashlib.sha256(index).hexdigest() == record.index_sha256
    return record if is_whole and record.name == name else None


def write_record(folder: Path, record: ShardRecord, index: ShardIndex) -> ShardRecord:
    """Write an index and then the record, which this names it in.

    An index is named after its content, so that the one an older manifest names stays as it is.
    """
    encoded = encode_index(index)
    digest = hashlib.sha256(encoded).hexdigest()
    path = record_path(folder, record.name)
    index_path = path.with_name(f"{path.stem}-{digest[:8]}.parquet")
    for stale in kept_files(index_path):  # The shard may have changed where its headers did not.
        stale.unlink(missing_ok=True)
    write_atomic(index_path, encoded)
    record = record.model_copy(update={"index": index_path.name, "index_sha256": digest})
    write_atomic(path, record.model_dump_json(indent=1).encode())
    return record


def wanted_numbers(record: ShardRecord, classes: Sequence[str]) -> tuple[int, ...]:
    """Say what `numbers` must be where labels count through `classes`."""
    position = {name: number for number, name in enumerate(classes)}
    return tuple(position[name] for name in record.names)


def renumber(folder: Path, record: ShardRecord, classes: Sequence[str]) -> ShardRecord:
    """Make the labels of an index count through `classes`, the names of all shards together."""
    numbers = wanted_numbers(record, classes)
    index = read_index(folder / record.index, sha256=record.index_sha256)
    new = np.full(max(record.numbers) + 2, -1, np.int32)  # A label of -1 reads the last.
    new[list(record.numbers)] = numbers
    record = record.model_copy(update={"numbers": numbers})
    return write_record(folder, record, replace(index, labels=new[index.labels]))
