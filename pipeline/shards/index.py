"""The index of a shard: position, image size and hash of every sample."""

import glob
import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.shards.headers import HeaderError, read_size

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("start", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("hash", pa.uint64()),
        ("span_hash", pa.uint64()),
        ("label", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """One row per sample of a shard, in tar order; N rows.

    The span of a sample runs from its first header to that of the next sample; the first starts
    at 0 and the last ends with the tar, so spans cover every byte exactly once.
    """

    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    """(N,), first byte of the sample's span; the first is 0."""
    offsets: NDArray[np.int64]
    """(N,), first byte of the image in the tar."""
    sizes: NDArray[np.int64]
    """(N,), bytes of the image."""
    widths: NDArray[np.int32]
    """(N,), px."""
    heights: NDArray[np.int32]
    """(N,), px."""
    hashes: NDArray[np.uint64]
    """(N,), xxh3 (64 bit) of the image's bytes; identifies the image anywhere."""
    span_hashes: NDArray[np.uint64]
    """(N,), xxh3 (64 bit) of the span's bytes: headers, all members, padding."""
    labels: NDArray[np.int32]
    """(N,), class number, -1 for none."""

    def __len__(self) -> int:
        return len(self.keys)


def hash_spans(buffer: memoryview, starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash the span of every sample of a tar.

    Args:
        buffer: uint8, the whole tar.
        starts: int64 (N,), as in `ShardIndex`.

    Returns:
        uint64 (N,).
    """
    ends = np.append(starts[1:], len(buffer))[: len(starts)]
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([xxhash.xxh3_64_intdigest(buffer[a:b]) for a, b in pairs], np.uint64)


def encode_index(index: ShardIndex) -> bytes:
    """Serialize to Parquet; equal indexes give equal bytes."""
    where = [index.keys, index.starts, index.offsets, index.sizes]
    arrays = [*where, index.widths, index.heights, index.hashes, index.span_hashes, index.labels]
    table = pa.table(
        [pa.array(column, type=field.type) for column, field in zip(arrays, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )
    sink = io.BytesIO()
    # Plain pages open four times as fast as dictionaries with zstd.
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def read_index(path: Path, *, sha256: str) -> ShardIndex:
    """Read an index whose bytes must have the given hash.

    Raises:
        ConfigError: The file is missing, has another hash, or has other columns.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"index (={path}) cannot be read: {error.strerror}.") from None
    return decode_index(data, path, sha256=sha256)


def decode_index(data: bytes, name: str | Path, *, sha256: str) -> ShardIndex:
    """Decode an index whose bytes must have the given hash; errors call it `name`.

    Raises:
        ConfigError: It has another hash, or other columns.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(
            f"index (={name}) does not match the hash in its manifest: it was damaged or replaced "
            "after it was written. Restore it or shard again."
        )
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    if not table.schema.equals(_SCHEMA):
        raise ConfigError(
            f"index (={name}) has columns {table.schema.names}, not {_SCHEMA.names}; shard again."
        )
    columns = {key: table.column(key).to_numpy() for key in _SCHEMA.names[1:]}
    return ShardIndex(
        keys=tuple(table.column("key").to_pylist()),
        starts=columns["start"],
        offsets=columns["offset"],
        sizes=columns["size"],
        widths=columns["width"],
        heights=columns["height"],
        hashes=columns["hash"],
        span_hashes=columns["span_hash"],
        labels=columns["label"],
    )


_ENDING = ".used.parquet"
_HASH_DIGITS = 16


def complete_index(index: ShardIndex, tar: memoryview, index_path: Path) -> ShardIndex:
    """Fill in the image sizes and hashes that a fast index omits, and cache the result beside it.

    Images with an unusable header keep width and height 0. The cached file has its own hash in its
    name, so a damaged one is detected and remade; concurrent processes write equal bytes. In a
    read-only folder nothing is cached.

    Args:
        index: As `tessera index --fast` wrote it.
        tar: uint8, the whole shard.
        index_path: Path of the index.

    Returns:
        The same rows, complete.
    """
    kept = _read_kept(index, index_path)
    if kept is not None:
        return kept
    sizes, hashes = [], []
    for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
        image = tar[offset : offset + size]
        sizes.append(_size_or_zeros(image))
        hashes.append(xxhash.xxh3_64_intdigest(image))
    widths, heights = np.array(sizes, np.int32).reshape(-1, 2).T
    completed = replace(
        index,
        widths=widths,
        heights=heights,
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(tar, index.starts),
    )
    encoded = encode_index(completed)
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    with suppress(OSError):  # A read-only folder or a full disk: computed again next time.
        write_atomic(index_path.with_name(f"{index_path.stem}.{digest}{_ENDING}"), encoded)
    return completed


def kept_files(index_path: Path) -> list[Path]:
    """List the completed indexes cached beside an index, damaged ones included, by name."""
    pattern = f"{glob.escape(index_path.stem)}.{'?' * _HASH_DIGITS}{_ENDING}"
    return sorted(index_path.parent.glob(pattern))


def index_name(kept: str) -> str:
    """Name the index that a cached file completes; "" for other files."""
    if not kept.endswith(_ENDING):
        return ""
    return f"{kept[: -len(_ENDING) - _HASH_DIGITS - 1]}.parquet"


def _read_kept(index: ShardIndex, index_path: Path) -> ShardIndex | None:
    for path in kept_files(index_path):
        with suppress(OSError, ConfigError):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name == f"{index_path.stem}.{digest[:_HASH_DIGITS]}{_ENDING}":
                kept = read_index(path, sha256=digest)
                if _have_equal_rows(kept, index):
                    return kept
    return None


def _have_equal_rows(one: ShardIndex, other: ShardIndex) -> bool:
    """Tell whether two indexes have the same samples at the same offsets."""
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("starts", "offsets", "sizes", "labels")
    )


def _size_or_zeros(image: memoryview) -> tuple[int, int]:
    try:
        return read_size(image)
    except HeaderError:
        return 0, 0
