"""Read verified bytes by sample id from mapped tars; every span is checked against its hash."""

import errno
import mmap
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import Self

from pipeline.config import ConfigError
from pipeline.dali.webp import decodable
from pipeline.remote.cache import ShardCache
from pipeline.remote.fetch import FetchError
from pipeline.remote.location import FileRequest, is_remote, join
from pipeline.shards.damage import Damage, DamageError, Reason
from pipeline.shards.index import ShardIndex, complete_index, read_index
from pipeline.shards.manifest import (
    Manifest,
    ShardInfo,
    check_size,
    folder_of,
    purged_samples,
    read_manifest,
)
from pipeline.shards.samples import split_span


@dataclass(frozen=True, slots=True)
class MappedShard:
    """An open shard: one mapping, one file descriptor and about 60 bytes per sample."""

    index: ShardIndex
    ends: NDArray[np.int64]
    """(N,), end of each sample's span."""
    mapped: mmap.mmap
    """The whole tar, read-only."""
    held: ExitStack
    """Released with the shard: the mapping, then what the opener holds for it."""

    def read_span(self, row: int) -> bytes | None:
        """Copy a sample's span out of the mapping; None if it does not match its hash.

        A copy, since mapped bytes may change between hashing and decoding. Reading past the end of
        a truncated mapping kills the process, so the size is checked first.
        """
        end = self.ends.item(row)
        if self.mapped.size() < end:
            return None
        span = self.mapped[self.index.starts.item(row) : end]
        return span if xxhash.xxh3_64_intdigest(span) == self.index.span_hashes.item(row) else None


def map_shard(info: ShardInfo, path: Path, index_path: Path, held: ExitStack) -> MappedShard:
    """Open a local shard, which takes over `held` on success.

    Raises:
        ConfigError: The tar or the index does not match `info`.
        OSError: One of them cannot be read, or too many files are open.
    """
    check_size(path, info)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    held.callback(mapped.close)
    # After the mapping, which keeps a file descriptor: when they run out, the mapping must report
    # it, not an index that then seems damaged.
    index = read_index(index_path, sha256=info.index_sha256)
    if info.sha256 is None:
        with memoryview(mapped) as tar:
            index = complete_index(index, tar, index_path)
    ends = np.append(index.starts[1:], info.num_bytes)
    return MappedShard(index, ends, mapped, held.pop_all())


_MIN_OPEN = 512
"""Shards kept mapped."""
_MAX_OPEN = 16_384  # Linux allows a process 65,530 mappings.
_NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of the index for a batch of samples, and their bytes."""

    payloads: list[NDArray[np.uint8]]
    """Encoded images whose hash was checked, as the decoder reads them (see `decodable`), uint8
    1-D; empty where damaged."""
    heights: NDArray[np.int32]
    """(B,), px."""
    widths: NDArray[np.int32]
    """(B,), px."""
    labels: NDArray[np.int64]
    """(B,), class numbers, -1 for none."""
    damaged: dict[int, Damage]
    """Damage by position in the batch."""
    keys: list[str] = field(default_factory=list)
    """B keys, empty where damaged; no keys for images from outside shards."""

    def require_whole(self) -> Self:
        """Return the samples if all of them are usable.

        Raises:
            DamageError: Names the first that is not.
        """
        for damage in self.damaged.values():
            raise DamageError(str(damage))
        return self

    @property
    def num_bytes(self) -> int:
        """Total size of the images."""
        return sum(payload.size for payload in self.payloads)


class Store:
    """Read samples of a set of shards by id; every span is checked against its hash.

    Args:
        location: A folder of shards or the manifest in it, as a path or a URL. Remote shards need
            a cache, given by `use` before the first read.
    """

    def __init__(self, location: str | Path) -> None:
        self.manifest: Manifest = read_manifest(location)
        self._folder = folder_of(location)
        self._cache: ShardCache | None = None
        self._starts = np.concatenate([[0], np.cumsum(self.manifest.shard_counts)])
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        self._max_open = _MIN_OPEN
        self._unusable: dict[int, str] = {}
        self.is_remote = any(is_remote(self._url(shard.name)) for shard in self.manifest.shards)
        """Whether any shard is remote."""

    def use(self, cache: ShardCache) -> None:
        """Keep remote shards in a cache, shared by the stores of a process."""
        self._cache = cache

    def keep_open(self, num: int) -> None:
        """Keep more shards mapped than usual, for an order that interleaves many."""
        self._max_open = min(max(self._max_open, num), _MAX_OPEN)

    def check(self) -> None:
        """Check the size of every local shard, before anything is started.

        Raises:
            ConfigError: A shard is missing or has another size than its manifest says.
        """
        for shard in self.manifest.shards:
            if not is_remote(self._url(shard.name)):
                check_size(Path(self._url(shard.name)), shard)

    def read(self, sample_ids: NDArray[np.int64]) -> Samples:
        """Read a batch; damaged samples are reported in the result, not raised."""
        numbers = np.searchsorted(self._starts, sample_ids, side="right") - 1
        rows = sample_ids - self._starts[numbers]
        batch = len(sample_ids)
        payloads, damaged = [_NOTHING] * batch, {}
        sizes = np.zeros((2, batch), np.int32)
        labels = np.full(batch, -1, np.int64)
        keys = [""] * batch
        for b, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            found = self._read_one(number, row)
            if isinstance(found, Damage):
                damaged[b] = found
                continue
            payloads[b], index = found, self._open[number].index
            sizes[0, b], sizes[1, b] = index.heights[row], index.widths[row]
            labels[b], keys[b] = index.labels[row], index.keys[row]
        return Samples(payloads, sizes[0], sizes[1], labels, damaged, keys)

    def prefetch(self, shards: NDArray[np.int64]) -> None:
        """Start fetching remote shards, the next needed first; replaces earlier requests."""
        if self._cache is None:
            return
        wanted = []
        for number in shards.tolist():
            info = self.manifest.shards[number]
            url, index_url = self._url(info.name), self._url(info.index)
            if is_remote(index_url) and number not in self._open:
                wanted.append(FileRequest(index_url, None, info.index_sha256))
            if is_remote(url) and number not in self._open:
                wanted.append(FileRequest(url, info.num_bytes, info.sha256))
        self._cache.prefetch(wanted)

    def labels(self) -> NDArray[np.int64]:
        """Class number of every sample in id order, int64 (N,); -1 if it has none or was purged."""
        indexes = (self._index(s) for s in range(len(self.manifest.shards)))
        labels = np.concatenate([index.labels for index in indexes]).astype(np.int64)
        labels[list(self.purged())] = -1
        return labels

    def purged(self) -> dict[int, Damage]:
        """Return the samples that currently have a tombstone, by id.

        Raises:
            ConfigError: The tombstones are damaged, or name an unknown shard or row.
        """
        return purged_samples(self.manifest, self._folder)

    def hashes(self) -> NDArray[np.uint64]:
        """Hash of every image's bytes in id order, uint64 (N,), as in `ShardIndex`."""
        return np.concatenate([self._index(s).hashes for s in range(len(self.manifest.shards))])

    def members(self, sample_id: int) -> dict[str, bytes]:
        """Read all files of a sample, by ending: jpg, json, xml.

        Raises:
            DamageError: Its bytes do not match their hash, or cannot be read.
        """
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        span = self._span(number, sample_id - int(self._starts[number]))
        if isinstance(span, Damage):
            raise DamageError(str(span))
        return split_span(span)

    def keys(self) -> list[str]:
        """Key of every sample in id order."""
        return [k for s in range(len(self.manifest.shards)) for k in self._index(s).keys]

    def damage(self, sample_id: int, reason: Reason, detail: str) -> Damage:
        """Describe damage that was found downstream of the store."""
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        return self._damage(number, sample_id - int(self._starts[number]), reason, detail)

    def close(self) -> None:
        """Close all shards; payloads returned earlier stay valid."""
        for shard in self._open.values():
            shard.held.close()
        self._open.clear()

    def _read_one(self, number: int, row: int) -> NDArray[np.uint8] | Damage:
        span = self._span(number, row)
        if isinstance(span, Damage):
            return span
        index = self._open[number].index
        if not index.widths[row]:
            return self._damage(number, row, "header", "no width and height can be read from it.")
        first = index.offsets.item(row) - index.starts.item(row)
        image = np.frombuffer(span, np.uint8, count=index.sizes.item(row), offset=first)
        return decodable(image)

    def _span(self, number: int, row: int) -> bytes | Damage:
        """Read and verify the span of one sample."""
        if number in self._unusable:
            return self._damage(number, row, "shard", self._unusable[number])
        try:
            shard = self._shard(number)
            span = shard.read_span(row)
            if span is None and self._forget(number):  # A cached copy went bad: fetch it again.
                shard = self._shard(number)
                span = shard.read_span(row)
        except (ConfigError, FetchError, OSError) as error:
            self._unusable[number] = str(error)
            return self._damage(number, row, "shard", str(error))
        if span is None:
            detail = (
                "the bytes do not match their hash; the shard was damaged after it was written. "
                "Restore it or shard again."
            )
            return self._damage(number, row, "hash", detail)
        return span

    def _damage(self, number: int, row: int, reason: Reason, detail: str) -> Damage:
        name, sample_id = self.manifest.shards[number].name, int(self._starts[number]) + row
        shard = self._open.get(number)
        if shard is None:
            return Damage(sample_id, name, "", -1, reason, detail)
        index = shard.index
        return Damage(sample_id, name, index.keys[row], int(index.offsets[row]), reason, detail)

    def _forget(self, number: int) -> bool:
        """Drop a damaged shard from the cache; returns whether it can be fetched again."""
        url = self._url(self.manifest.shards[number].name)
        if self._cache is None or not is_remote(url):
            return False
        self._open.pop(number).held.close()
        self._cache.discard(url)
        return True

    def _index(self, number: int) -> ShardIndex:
        """Read the index alone, without fetching a remote shard."""
        info = self.manifest.shards[number]
        if number in self._open or info.sha256 is None:
            return self._shard(number).index
        with ExitStack() as held:
            path = self._local(info.index, None, info.index_sha256, held)
            return read_index(path, sha256=info.index_sha256)

    def _shard(self, number: int) -> MappedShard:
        shard = self._open.get(number)
        if shard is not None:
            self._open.move_to_end(number)
            return shard
        try:
            shard = self._open_shard(self.manifest.shards[number])
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
            self._shrink(len(self._open) // 2)  # The process is out of file descriptors.
            shard = self._open_shard(self.manifest.shards[number])
        self._open[number] = shard
        if len(self._open) > self._max_open:
            self._shrink(self._max_open)
        return shard

    def _shrink(self, num: int) -> None:
        """Keep at most `num` shards open, the most recently used."""
        self._max_open = max(1, num)
        while len(self._open) > num:
            self._open.popitem(last=False)[1].held.close()

    def _open_shard(self, info: ShardInfo) -> MappedShard:
        with ExitStack() as held:
            index_path = self._local(info.index, None, info.index_sha256, held)
            path = self._local(info.name, info.num_bytes, info.sha256, held)
            return map_shard(info, path, index_path, held)

    def _local(self, name: str, num_bytes: int | None, sha256: str | None, held: ExitStack) -> Path:
        url = self._url(name)
        if not is_remote(url):
            return Path(url)
        if self._cache is None:
            raise ConfigError(f"shard (={url}) has a URL: its store must be given a cache.")
        return held.enter_context(self._cache.get(url, num_bytes=num_bytes, sha256=sha256)).path

    def _url(self, name: str) -> str:
        return join(self._folder, name)
