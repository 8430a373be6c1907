"""Sample ids into verified bytes: mmapped tars, checked against their index when they are read."""

import mmap
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.manifest import Manifest, ShardInfo, manifest_path, read_manifest

_MAX_OPEN = 512
"""Shards kept mapped; each costs one mapping and about 45 bytes a sample, no file descriptor."""


class DamageError(RuntimeError):
    """Bytes on the disk are not the bytes that were written; names shard, key and offset."""


@dataclass(frozen=True, slots=True)
class _OpenShard:
    index: ShardIndex
    data: NDArray[np.uint8]
    """The whole tar, mapped read-only."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of the index for a batch of samples, and their bytes."""

    payloads: list[NDArray[np.uint8]]
    """Views of the mapped tars, uint8 1-D, one encoded image each."""
    heights: NDArray[np.int32]
    """(B,), px."""
    widths: NDArray[np.int32]
    """(B,), px."""
    labels: NDArray[np.int64]
    """(B,), class numbers, -1 where there is none."""


class Store:
    """Read samples of a shard folder by id; every payload is checked against its hash."""

    def __init__(self, path: Path) -> None:
        self.manifest: Manifest = read_manifest(path)
        self._folder = manifest_path(path).parent
        self._starts = np.concatenate([[0], np.cumsum(self.manifest.shard_counts)])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        for shard in self.manifest.shards:
            _check_size(self._folder / shard.name, shard)

    def read(self, sample_ids: NDArray[np.int64]) -> Samples:
        """Read a batch.

        Raises:
            DamageError: A payload does not match the hash in its index.
            ConfigError: A shard or an index is missing or another one than the manifest's.
        """
        shards = np.searchsorted(self._starts, sample_ids, side="right") - 1
        rows = sample_ids - self._starts[shards]
        places = [(self._shard(int(s)), int(r)) for s, r in zip(shards, rows, strict=True)]
        payloads = []
        for sample_id, (shard, row) in zip(sample_ids, places, strict=True):
            offset = shard.index.offsets[row]
            payload = shard.data[offset : offset + shard.index.sizes[row]]
            if xxhash.xxh3_64_intdigest(payload.data) != shard.index.hashes[row]:
                raise DamageError(
                    f"{self.describe(int(sample_id))}: the bytes do not match their hash; the "
                    "shard was damaged after it was written. Restore it or shard again."
                )
            payloads.append(payload)
        return Samples(
            payloads=payloads,
            heights=np.array([s.index.heights[r] for s, r in places], dtype=np.int32),
            widths=np.array([s.index.widths[r] for s, r in places], dtype=np.int32),
            labels=np.array([s.index.labels[r] for s, r in places], dtype=np.int64),
        )

    def labels(self) -> NDArray[np.int64]:
        """Class number of every sample in id order, int64 (N,), -1 where there is none."""
        indexes = (self._shard(s).index for s in range(len(self.manifest.shards)))
        return np.concatenate([index.labels for index in indexes]).astype(np.int64)

    def keys(self) -> list[str]:
        """Key of every sample in id order."""
        return [k for s in range(len(self.manifest.shards)) for k in self._shard(s).index.keys]

    def describe(self, sample_id: int) -> str:
        """Name shard, key and offset of a sample."""
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        index, row = self._shard(number).index, sample_id - int(self._starts[number])
        return (
            f"shard {self.manifest.shards[number].name}, key {index.keys[row]}, "
            f"offset {index.offsets[row]}"
        )

    def _shard(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = _open_shard(self._folder, self.manifest.shards[number])
            self._open[number] = shard
            if len(self._open) > _MAX_OPEN:  # Views handed out keep their mapping alive.
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard


def _open_shard(folder: Path, info: ShardInfo) -> _OpenShard:
    path = folder / info.name
    _check_size(path, info)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    index = read_index(folder / info.index, sha256=info.index_sha256)
    return _OpenShard(index, np.frombuffer(mapped, dtype=np.uint8))


def _check_size(path: Path, info: ShardInfo) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"shard (={path}) cannot be read: {error.strerror}.") from None
    if size != info.num_bytes:
        raise ConfigError(
            f"shard (={path}) has {size} bytes, its manifest says {info.num_bytes}: it was cut or "
            "replaced after it was written. Restore it or shard again."
        )
