"""The index of a shard: where each sample lies, the size of its image, the hash of its bytes."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pipeline.config import ConfigError

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
    """One row for each sample of a shard, in the order of the tar; N rows.

    The span of a sample is all that lies from its first header to the next sample's; the first
    begins at 0 and the last ends with the tar, so that the spans cover every byte once.
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
    """(N,), xxh3 (64 bit) of the image's bytes; names the image wherever it lies."""
    span_hashes: NDArray[np.uint64]
    """(N,), xxh3 (64 bit) of the span's bytes: headers, all members, padding."""
    labels: NDArray[np.int32]
    """(N,), class number, -1 where there is none."""

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
    ends = np.append(starts[1:], len(buffer))
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([xxhash.xxh3_64_intdigest(buffer[a:b]) for a, b in pairs], np.uint64)


def encode_index(index: ShardIndex) -> bytes:
    """Serialise to Parquet; equal indexes give equal bytes."""
    where = [index.keys, index.starts, index.offsets, index.sizes]
    arrays = [*where, index.widths, index.heights, index.hashes, index.span_hashes, index.labels]
    table = pa.table(
        [pa.array(column, type=field.type) for column, field in zip(arrays, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )
    sink = io.BytesIO()
    # Plain pages: a shard is opened four times as fast as with dictionaries and zstd.
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def read_index(path: Path, *, sha256: str) -> ShardIndex:
    """Read an index whose bytes must have the given hash.

    Raises:
        ConfigError: The file is missing, another one than the manifest's, or has other columns.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"index (={path}) cannot be read: {error.strerror}.") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(
            f"index (={path}) does not match the hash in its manifest: it was damaged or replaced "
            "after it was written. Restore it or shard again."
        )
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    if not table.schema.equals(_SCHEMA):
        raise ConfigError(
            f"index (={path}) has columns {table.schema.names}, not {_SCHEMA.names}; shard again."
        )
    columns = {name: table.column(name).to_numpy() for name in _SCHEMA.names[1:]}
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
