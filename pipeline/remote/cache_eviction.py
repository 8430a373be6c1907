"""Room in the cache's folder: what goes first, and what dead processes left behind.

Everything is counted and evicted under one lock, `room.lock`, which is never held for long. Files
that do not have the names of `cache_entry` are not touched.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.remote.cache_entry import CacheEntry

_NAME = re.compile(r"([0-9a-f]{32})(\.json|\.partial|-.*)")
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """What the folder may take."""

    budget: int
    """Bytes of all files."""
    reserve: int
    """Bytes of its disk that stay free."""


@dataclass(frozen=True, slots=True)
class EvictionResult:
    """How making room went."""

    evicted: int
    missing: int
    """Bytes that are wanting still; 0 where there is room."""
    short_of: Literal["budget", "disk"]
    """What they are wanting of."""
    pinned: frozenset[str]
    """Keys of entries that are in use."""
    in_transit: frozenset[str]
    """Keys of entries that somebody is downloading."""


@dataclass(slots=True)
class _EntryUsage:
    """What an entry takes."""

    entry: CacheEntry
    num_bytes: int = 0
    unwritten: int = 0
    """Bytes that its download has announced and not written yet."""
    used_ns: int = 0


def make_room(
    entry: CacheEntry, num_bytes: int, limits: Limits, *, spare: int, keep: Collection[str]
) -> EvictionResult:
    """Evict what was not used for longest until `num_bytes` fit, and announce them.

    The partial file is given its whole size at once, so that every process counts it.

    Args:
        entry: What is to be downloaded, by its owner; its own partial file does not count.
        num_bytes: Its size.
        limits: Of the folder.
        spare: Bytes to evict even so.
        keep: Keys of entries that stay.
    """
    with _counting(entry.folder):
        taken = _scan(entry.folder)
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
    """Delete what processes that died while they downloaded have left."""
    with _counting(folder):
        for item in _scan(folder).values():
            if item.entry.partial.exists() or not item.entry.path.exists():
                owned = item.entry.own()
                if owned is not None:
                    item.entry.disown(owned)


@contextmanager
def _counting(folder: Path) -> Iterator[None]:
    with (folder / "room.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _scan(folder: Path) -> dict[str, _EntryUsage]:
    """List the entries by key."""
    taken: dict[str, _EntryUsage] = {}
    with os.scandir(folder) as files:
        for file in files:
            found = _NAME.fullmatch(file.name)
            if found is None:
                continue
            key, kind = found[1], found[2]
            try:
                stat = file.stat()
            except FileNotFoundError:  # Its owner is done with it.
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
