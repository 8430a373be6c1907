"""Entries of the cache: their files, locks, integrity and eviction.

An entry has three files under one key, the hash of the URL: `KEY-name` is the file, `KEY.json` its
record, whose mtime is its last use, `KEY.partial` its download. Locks are flocks, which the kernel
drops with their owner: a shared one on the file pins it, an exclusive one on the record is the
right to write or delete all three. Eviction happens under one lock, `room.lock`, which is never
held for long; files with other names are not touched.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import Field, ValidationError

from pipeline.config import Config
from pipeline.remote.location import FileRequest, redact_url


class CacheRecord(Config):
    """A file as of its last verification."""

    url: str
    """URL without secrets, for humans."""
    sha256: str
    num_bytes: int = Field(ge=0)
    mtime_ns: int
    ctime_ns: int
    """Unlike the mtime, it cannot be set back."""

    def fits(self, stat: os.stat_result, wanted: FileRequest) -> bool:
        """Tell whether a file is unchanged, and the wanted one."""
        return (
            (self.num_bytes, self.mtime_ns, self.ctime_ns)
            == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            and wanted.num_bytes in (None, self.num_bytes)
            and wanted.sha256 in (None, self.sha256)
        )


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The entry of a URL in the cache's folder."""

    folder: Path
    key: str
    """32 hex digits."""
    name: str
    """Name of the file: the key and a readable part."""

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def record_path(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.key}.partial"

    def own(self) -> FileIO | None:
        """Take the right to write and delete; None while another holds it."""
        return _locked(self.record_path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def disown(self, owned: FileIO) -> None:
        """Release that right; removes a partial file, and a record without its file."""
        with owned:
            self.partial.unlink(missing_ok=True)
            if not self.path.exists():
                self.record_path.unlink(missing_ok=True)

    def pin(self) -> FileIO | None:
        """Open the file, pinning it until closed; None if there is none."""
        return _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH)

    def holds(self, pinned: FileIO) -> bool:
        """Tell whether the pinned file is still the one under this name."""
        return _is_at(pinned, self.path)

    def is_known(self, pinned: FileIO, wanted: FileRequest) -> bool:
        """Tell from its record alone whether the pinned file is intact."""
        record = self._record()
        return record is not None and record.fits(os.fstat(pinned.fileno()), wanted)

    def is_whole(self, pinned: FileIO, owned: FileIO, wanted: FileRequest) -> bool:
        """Tell whether the pinned file is intact by reading all of it; if so, record that."""
        record, num_bytes = self._record(), os.fstat(pinned.fileno()).st_size
        sha256 = wanted.sha256 or (record.sha256 if record else None)
        if sha256 is None or wanted.num_bytes not in (None, num_bytes):
            return False
        digest = hashlib.sha256()
        while block := pinned.read(1 << 20):
            digest.update(block)
        if digest.hexdigest() != sha256:
            return False
        self._write_record(pinned, owned, wanted.url, sha256)
        return True

    def publish(self, owned: FileIO, url: str, sha256: str) -> FileIO:
        """Rename the complete partial file; returns it already pinned."""
        pinned = _locked(self.partial, os.O_RDONLY, fcntl.LOCK_SH)
        assert pinned is not None
        self.partial.replace(self.path)
        self._write_record(pinned, owned, url, sha256)
        return pinned

    def touch(self) -> None:
        """Record a use of the file."""
        now = time.time_ns()  # The file system's own clock may tick only every 4 ms.
        with suppress(FileNotFoundError):  # Discarded concurrently.
            os.utime(self.record_path, ns=(now, now))

    def evict(self) -> Literal["gone", "pinned", "in transit"]:
        """Delete the file unless it is in use or being downloaded."""
        owned = self.own()
        if owned is None:
            return "in transit"
        try:
            if self.path.exists():
                unpinned = _locked(self.path, os.O_RDONLY, fcntl.LOCK_EX)
                if unpinned is None:
                    return "pinned"
                with unpinned:
                    self.path.unlink()
            return "gone"
        finally:
            self.disown(owned)

    def _record(self) -> CacheRecord | None:
        """Read the record; None if torn by a crash, and the file is then verified again."""
        try:
            return CacheRecord.model_validate_json(self.record_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write_record(self, pinned: FileIO, owned: FileIO, url: str, sha256: str) -> None:
        stat = os.fstat(pinned.fileno())
        record = CacheRecord(
            url=redact_url(url),
            sha256=sha256,
            num_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
        )
        owned.truncate(0)
        os.pwrite(owned.fileno(), record.model_dump_json(indent=1).encode(), 0)
        self.touch()


def entry_of(folder: Path, url: str) -> CacheEntry:
    """Return the entry of a URL, keyed by all of it: two hosts may have a `0.tar`."""
    key = xxhash.xxh3_128_hexdigest(url.encode())
    tail = re.sub(r"[^A-Za-z0-9_.-]", "_", redact_url(url).rpartition("/")[2])
    return CacheEntry(folder, key, f"{key}-{tail[-80:]}")


def _locked(path: Path, flags: int, lock: int) -> FileIO | None:
    """Open and lock a file; None if it is missing or locked by another."""
    while True:
        try:
            file = FileIO(os.open(path, flags | os.O_CLOEXEC, 0o644), "r+" if flags else "r")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if _is_at(file, path):
            return file
        file.close()  # Deleted or replaced before the lock: try again.


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


_NAME = re.compile(r"([0-9a-f]{32})(\.json|\.partial|-.*)")
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the folder's size."""

    budget: int
    """Most bytes of all files."""
    reserve: int
    """Bytes to keep free on its disk."""


@dataclass(frozen=True, slots=True)
class EvictionResult:
    """Outcome of making space."""

    evicted: int
    missing: int
    """Bytes still lacking; 0 on success."""
    short_of: Literal["budget", "disk"]
    """Which limit they are lacking of."""
    pinned: frozenset[str]
    """Keys of entries in use."""
    in_transit: frozenset[str]
    """Keys of entries being downloaded."""


@dataclass(slots=True)
class _EntryUsage:
    """Disk usage of an entry."""

    entry: CacheEntry
    num_bytes: int = 0
    unwritten: int = 0
    """Bytes reserved by its download and not written yet."""
    used_ns: int = 0


def make_space(
    entry: CacheEntry, num_bytes: int, limits: Limits, *, spare: int, keep: Collection[str]
) -> EvictionResult:
    """Evict the least recently used entries until `num_bytes` fit, and reserve them.

    The partial file gets its full size immediately, so that every process counts it.

    Args:
        entry: Entry to be downloaded by its owner; its own partial file does not count.
        num_bytes: Its size.
        limits: Limits of the folder.
        spare: Bytes to evict in any case.
        keep: Keys of entries that are not evicted.
    """
    with _counting(entry.folder):
        taken = _usage(entry.folder)
        own = taken.pop(entry.key, _EntryUsage(entry))
        free = shutil.disk_usage(entry.folder).free - limits.reserve
        free -= sum(item.unwritten for item in taken.values())
        over_budget = sum(item.num_bytes for item in taken.values()) + num_bytes - limits.budget
        over_disk = max(num_bytes - (own.num_bytes - own.unwritten) - free, spare)
        freed, evicted = 0, 0
        used: dict[str, set[str]] = {"pinned": set(), "in transit": set()}
        for item in sorted(taken.values(), key=lambda item: item.used_ns):
            if max(over_budget, over_disk) <= freed:
                break
            if item.entry.key in keep:
                continue
            end = item.entry.evict()
            if end == "gone":
                freed, evicted = freed + item.num_bytes, evicted + 1
            else:
                used[end].add(item.entry.key)
        missing = max(0, over_budget - freed, over_disk - freed)
        if not missing:
            with entry.partial.open("ab") as file:
                file.truncate(num_bytes)
    return EvictionResult(
        evicted,
        missing,
        "budget" if over_budget >= over_disk else "disk",
        frozenset(used["pinned"]),
        frozenset(used["in transit"]),
    )


def sweep(folder: Path) -> None:
    """Delete partial downloads of dead processes."""
    with _counting(folder):
        for item in _usage(folder).values():
            if item.entry.partial.exists() or not item.entry.path.exists():
                owned = item.entry.own()
                if owned is not None:
                    item.entry.disown(owned)


@contextmanager
def _counting(folder: Path) -> Iterator[None]:
    with (folder / "room.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _usage(folder: Path) -> dict[str, _EntryUsage]:
    """Return the usage of every entry, by key."""
    taken: dict[str, _EntryUsage] = {}
    with os.scandir(folder) as files:
        for file in files:
            found = _NAME.fullmatch(file.name)
            if found is None:
                continue
            key, kind = found[1], found[2]
            try:
                stat = file.stat()
            except FileNotFoundError:  # Deleted by its owner.
                continue
            item = taken.setdefault(key, _EntryUsage(CacheEntry(folder, key, f"{key}-")))
            if kind == ".json":
                item.used_ns = stat.st_mtime_ns
                continue
            item.num_bytes += stat.st_size
            if kind == ".partial":
                item.unwritten = max(0, stat.st_size - stat.st_blocks * _BLOCK)
            else:
                item.entry = CacheEntry(folder, key, file.name)
    return taken
