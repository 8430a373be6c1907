"""Downloads of the cache: who downloads what, in which order, and who waits."""

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from pipeline.config import ConfigError
from pipeline.remote.cache_entry import CacheEntry, EvictionResult, Limits, entry_of, make_space
from pipeline.remote.fetch import FetchConfig, Fetcher, FetchError
from pipeline.remote.location import FileRequest

How = Literal["hits", "misses", "waits"]

_POLL = 0.05
"""Seconds between polls of other processes' locks."""
_RECHECK = 0.5
"""Seconds between retries of a prefetch that lacks space."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Counts:
    """See `CacheStats`."""

    gets: dict[How, int] = field(default_factory=lambda: {"hits": 0, "misses": 0, "waits": 0})
    evictions: int = 0
    corrupt: int = 0


class _NoSpaceError(RuntimeError):
    """There is no space to prefetch."""


class Transfers:
    """Downloads into one folder; all methods run on fsspec's event loop.

    Processes coordinate only through the folder and its locks.
    """

    def __init__(
        self, folder: Path, limits: Limits, config: FetchConfig, pins: Callable[[], Set[str]]
    ) -> None:
        """`pins` returns the keys of the entries that this process uses."""
        self.counts = Counts()
        self.fetcher = Fetcher(config)
        self._folder = folder
        self._limits = limits
        self._pins = pins
        self._closed = False
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._transit: dict[str, asyncio.Task[How]] = {}
        self._arrived: dict[str, tuple[FileRequest, FileIO]] = {}  # Pinned until picked up.
        self._wishes: deque[FileRequest] = deque()
        self._ahead: set[str] = set()  # Keys wished for and not requested yet.
        self._running = 0  # Prefetches,
        self._idle = 0  # of which so many are pausing or late.

    async def get(self, wanted: FileRequest) -> FileIO:
        """Return the file of a URL, verified and pinned."""
        entry = entry_of(self._folder, wanted.url)
        self._ahead.discard(entry.key)
        how: How = "hits"
        while (pinned := self._look(entry, wanted)) is None:
            task = self._transit.get(entry.key)
            if task is not None:
                how = "waits"
            try:
                # Shielded: others may be waiting for it too.
                ended = await asyncio.shield(task or self._start(entry, wanted, urgent=True))
            except _NoSpaceError:
                continue  # The prefetch gave up; a requested file may evict more.
            if task is None and how == "hits":
                how = ended
        entry.touch()
        self.counts.gets[how] += 1
        return pinned

    def wish(self, wanted: Sequence[FileRequest]) -> None:
        """Replace the list of files to prefetch."""
        self._wishes = deque(wanted)
        self._ahead = {entry_of(self._folder, item.url).key for item in wanted}
        self._pump()

    async def discard(self, entry: CacheEntry, file: os.stat_result) -> None:
        """Delete an entry if it is still this version of the file."""
        owned = await self._own(entry)
        try:
            now = entry.path.stat()
            if (now.st_ino, now.st_mtime_ns) == (file.st_ino, file.st_mtime_ns):
                entry.path.unlink()
                self.counts.corrupt += 1
        except FileNotFoundError:
            pass
        finally:
            entry.disown(owned)

    async def close(self) -> None:
        """Cancel everything and wait for it to end."""
        self._closed = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for _, pinned in self._arrived.values():
            pinned.close()
        await self.fetcher.close()

    def _look(self, entry: CacheEntry, wanted: FileRequest) -> FileIO | None:
        """Pin a file that is present and known to be intact."""
        if entry.key in self._arrived:
            verified, pinned = self._arrived.pop(entry.key)
            if verified == wanted and entry.holds(pinned):
                return pinned
            pinned.close()
        found = entry.pin()
        if found is None or entry.is_known(found, wanted):
            return found
        found.close()
        return None

    def _spawn(self, work: Coroutine[Any, Any, How]) -> asyncio.Task[How]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # Mark as retrieved.
        return task

    def _start(self, entry: CacheEntry, wanted: FileRequest, *, urgent: bool) -> asyncio.Task[How]:
        task = self._spawn(self._bring(entry, wanted, urgent))
        self._transit[entry.key] = task
        task.add_done_callback(lambda _: self._transit.pop(entry.key))
        return task

    def _pump(self) -> None:
        parallel = self.fetcher.config.parallel
        while self._wishes and not self._closed:
            if self._running - self._idle >= parallel or self._running >= 2 * parallel:
                break
            self._running += 1
            self._spawn(self._prefetch(self._wishes.popleft(), self._wishes))

    def _lend(self, change: int) -> None:
        """Let others run while a prefetch pauses or is late."""
        self._idle += change
        self._pump()

    async def _prefetch(self, wanted: FileRequest, wishes: deque[FileRequest]) -> How:
        """Prefetch a file; without space, wait for it as long as the list is current.

        Errors are not raised: `get` will hit them again.
        """
        entry = entry_of(self._folder, wanted.url)
        how: How = "hits"
        try:
            while wishes is self._wishes and entry.key not in self._transit:
                pinned = self._look(entry, wanted)
                if pinned is not None:
                    pinned.close()
                    entry.touch()
                    break
                try:
                    how = await self._start(entry, wanted, urgent=False)
                    break
                except _NoSpaceError:
                    await asyncio.sleep(_RECHECK)
        except (FetchError, ConfigError, OSError):
            pass
        finally:
            if entry.key in self._arrived:
                self._arrived.pop(entry.key)[1].close()
            self._running -= 1
            self._pump()
        return how

    async def _own(self, entry: CacheEntry) -> FileIO:
        while (owned := entry.own()) is None:
            await asyncio.sleep(_POLL)
        return owned

    async def _bring(self, entry: CacheEntry, wanted: FileRequest, urgent: bool) -> How:
        """Bring the file here; on success it is pinned in `_arrived`."""
        owned, waited = entry.own(), False
        if owned is None:  # Another process is downloading it.
            if not urgent:
                return "waits"
            owned, waited = await self._own(entry), True
        try:
            pinned = await self._examine(entry, owned, wanted)
            how: How = "waits" if waited else "hits"
            if pinned is None:
                pinned, how = await self._download(entry, owned, wanted, urgent), "misses"
            self._arrived[entry.key] = (wanted, pinned)
            return how
        finally:
            entry.disown(owned)

    async def _examine(
        self, entry: CacheEntry, owned: FileIO, wanted: FileRequest
    ) -> FileIO | None:
        """Pin the present file if it is intact, else delete it."""
        pinned = entry.pin()
        if pinned is None:
            return None
        whole = False
        try:
            whole = entry.is_known(pinned, wanted) or await self.fetcher.thread(
                entry.is_whole, pinned, owned, wanted
            )
        finally:
            if not whole:
                pinned.close()
        if whole:
            return pinned
        entry.path.unlink(missing_ok=True)
        self.counts.corrupt += 1
        return None

    async def _download(
        self, entry: CacheEntry, owned: FileIO, wanted: FileRequest, urgent: bool
    ) -> FileIO:
        announced = wanted.num_bytes or 0
        for spare in (0, max(1, announced)):
            await self._make_space(entry, announced, urgent, spare)
            try:
                fetched = await self.fetcher.download(
                    wanted, entry.partial, self._lend if not urgent else None
                )
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                continue  # Others fill the disk: evict as much again, once.
            if fetched.num_bytes != announced:
                await self._make_space(entry, fetched.num_bytes, urgent)
            return entry.publish(owned, wanted.url, fetched.sha256)
        raise ConfigError(
            f"folder (={self._folder}) of the cache is on a full disk; free space on it, or lower "
            "budget_gb and raise reserve_gb."
        )

    async def _make_space(
        self, entry: CacheEntry, num_bytes: int, urgent: bool, spare: int = 0
    ) -> None:
        """Evict until there is space; waits for other processes, but not forever."""
        begun = time.monotonic()
        while True:
            async with self._turn:  # First come, first served.
                keep = frozenset[str]() if urgent else frozenset(self._ahead)
                space: EvictionResult = await self.fetcher.thread(
                    partial(make_space, entry, num_bytes, self._limits, spare=spare, keep=keep)
                )
            self.counts.evictions += space.evicted
            if not space.missing:
                return
            if not urgent:
                raise _NoSpaceError
            config = self.fetcher.config
            patience = config.budget if space.in_transit else config.timeout
            may_change = space.in_transit or space.pinned - self._pins()
            if not may_change or time.monotonic() - begun > patience:
                raise ConfigError(self._shortage(space, entry, num_bytes))
            await asyncio.sleep(_POLL)

    def _shortage(self, space: EvictionResult, entry: CacheEntry, num_bytes: int) -> str:
        budget, reserve = self._limits.budget / 1e9, self._limits.reserve / 1e9
        used = f"{len(space.pinned | space.in_transit)} files in use"
        file = f"{entry.name[33:]} of {num_bytes / 1e9:.3g} GB"
        if space.short_of == "budget":
            return (
                f"budget_gb (={budget:g}) of the cache lacks {space.missing / 1e9:.3g} GB for "
                f"{file} beside {used}; raise budget_gb."
            )
        return (
            f"folder (={self._folder}) of the cache lacks {space.missing / 1e9:.3g} GB of free "
            f"disk for {file} beside reserve_gb (={reserve:g}) and {used}; free space, or choose a "
            "folder on a larger disk."
        )
