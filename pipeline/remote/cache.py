"""Cache remote shards on the local disk: one copy per node, within a budget."""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from fsspec.asyn import get_loop
from pydantic import Field
from typing_extensions import Self

from pipeline.config import Config, ConfigError
from pipeline.remote.cache_entry import Limits, entry_of, sweep
from pipeline.remote.downloads import Transfers
from pipeline.remote.fetch import FetchConfig
from pipeline.remote.location import FileRequest

T = TypeVar("T")

_GB = 10**9


class CacheConfig(Config):
    """Where this node keeps remote shards."""

    folder: Path = Field(default_factory=lambda: Path.home() / ".cache/tessera/shards")
    """Folder on a local disk, shared by all runs of the node."""
    budget_gb: float = Field(default=100, gt=0)
    """Size limit of all files, 10^9 bytes."""
    reserve_gb: float = Field(default=1, ge=0)
    """Space to keep free on the folder's disk, 10^9 bytes."""
    fetch: FetchConfig = FetchConfig()


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of this process since the cache was opened."""

    hits: int = 0
    """Files present when requested."""
    misses: int = 0
    """Files whose download started when requested."""
    waits: int = 0
    """Files already being downloaded when requested."""
    bytes_fetched: int = 0
    """Bytes of all downloads: failed, prefetched and hedged ones included."""
    retries: int = 0
    hedges: int = 0
    """Second requests raced against slow ones."""
    evictions: int = 0
    corrupt: int = 0
    """Files, fetched or cached, that failed verification."""


class CachedFile:
    """A verified file that is pinned on the disk until released."""

    def __init__(self, path: Path, pinned: FileIO, pins: set["CachedFile"]) -> None:
        self.path: Path = path
        self._pinned = pinned
        self._pins = pins
        pins.add(self)

    def release(self) -> None:
        """Unpin the file; mappings of it stay valid. Idempotent."""
        self._pinned.close()
        self._pins.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ShardCache:
    """Files by URL, downloaded once for all processes of the node that share the folder.

    A file is trusted while its size, mtime and ctime are unchanged since it was written; otherwise
    it is hashed again, and fetched again if damaged. Bit rot on the disk is found by the samples'
    hashes when they are read: the reader then calls `discard`.
    """

    def __init__(self, config: CacheConfig) -> None:
        """Open the folder and delete what dead processes left in it.

        Raises:
            ConfigError: The folder cannot be used.
        """
        self._folder = config.folder.expanduser().absolute()
        limits = Limits(int(config.budget_gb * _GB), int(config.reserve_gb * _GB))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)
        except OSError as error:
            raise ConfigError(
                f"folder (={config.folder}) of the cache cannot be used: {error.strerror}. "
                "Choose another one."
            ) from None
        self._loop = get_loop()
        self._process = os.getpid()
        self._closed = False
        self._pins: set[CachedFile] = set()
        self._served: dict[str, os.stat_result] = {}  # By URL: the version last returned.
        self._transfers = Transfers(self._folder, limits, config.fetch, self._pinned_keys)

    def get(self, url: str, *, num_bytes: int | None, sha256: str | None) -> CachedFile:
        """Wait until a file is local and verified; it stays pinned until released.

        Raises:
            FetchError: It cannot be fetched, or has another size or hash.
            ConfigError: It does not fit the budget, or next to what is pinned.
            OSError: The folder cannot be written.
        """
        pinned = self._call(self._transfers.get(FileRequest(url, num_bytes, sha256)))
        self._served[url] = os.fstat(pinned.fileno())
        return CachedFile(entry_of(self._folder, url).path, pinned, self._pins)

    def prefetch(self, wanted: Sequence[FileRequest]) -> None:
        """Replace the list of files to download in the background, in order; returns immediately.

        Running downloads continue. Prefetching never evicts pinned files nor listed ones that `get`
        has not returned yet; it waits. Failures are retried, and raised, by `get`.
        """
        self._check_open()
        self._loop.call_soon_threadsafe(self._transfers.wish, tuple(wanted))

    def discard(self, url: str) -> None:
        """Delete a file that turned out to be damaged, so that `get` fetches it again.

        Deletes only the version that this process got, not one that another process has fetched
        since. Mappings of it stay valid.
        """
        served = self._served.pop(url, None)
        if served is not None:
            self._call(self._transfers.discard(entry_of(self._folder, url), served))

    def stats(self) -> CacheStats:
        """Return the counts of this process since the cache was opened."""
        counts, fetched = self._transfers.counts, self._transfers.fetcher.counters
        return CacheStats(
            **counts.gets,
            bytes_fetched=fetched.bytes_fetched,
            retries=fetched.retries,
            hedges=fetched.hedges,
            evictions=counts.evictions,
            corrupt=counts.corrupt + fetched.corrupt,
        )

    def close(self) -> None:
        """Stop all downloads and release all files. Idempotent."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._transfers.close(), self._loop).result()
        for pin in tuple(self._pins):
            pin.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop; Ctrl-C and `close` interrupt the wait."""
        self._check_open()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the cache was closed while waiting for a file") from None
        finally:
            future.cancel()

    def _check_open(self) -> None:
        assert os.getpid() == self._process, "a forked process must open a cache of its own"
        if self._closed:
            raise RuntimeError("the cache is closed")

    def _pinned_keys(self) -> set[str]:
        return {pin.path.name[:32] for pin in tuple(self._pins)}
