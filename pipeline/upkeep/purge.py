"""Purge samples by hash: tombstones that training honors from its next epoch on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path
from pipeline.shards.manifest import (
    TOMBSTONES_NAME,
    Tombstone,
    encode_tombstones,
    folder_of,
    read_manifest,
    read_tombstones,
)
from pipeline.shards.writer import KEY_DIGITS
from pipeline.upkeep.verify import open_index

_is_hash = re.compile(rf"[0-9a-f]{{16}}|[0-9a-f]{{{KEY_DIGITS}}}|[0-9a-f]{{32}}").fullmatch


@dataclass(frozen=True, slots=True)
class Purged:
    """Result of a purge."""

    asked: int
    """Distinct hashes in the list."""
    new: tuple[Tombstone, ...]
    """Written by this call."""
    known: int
    """Requested samples that already had a tombstone."""
    missing: tuple[str, ...]
    """Hashes that match no sample."""


def read_hashes(path: Path) -> list[str]:
    """Read a list of hashes: the first word of every line; # starts a comment.

    A hash is that of the original file (xxh3, 128 bit, 32 hex digits, as `xxh128sum` prints it),
    the key of a sample (its first 20 digits), or that of the stored image (xxh3, 64 bit, 16 hex
    digits).

    Raises:
        ConfigError: The file cannot be read, or a line has no such hash.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"hashes (={path}) cannot be read: {cause}.") from None
    hashes: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not _is_hash(words[0].lower()):
            raise ConfigError(
                f"hashes (={path}) line {number} (={words[0][:40]}) is not a hash of 32 digits (of "
                "the file: xxh128sum FILE), 20 digits (the key of a sample) or 16 digits (of the "
                "stored image); nothing was purged."
            )
        hashes[words[0].lower()] = None
    return list(hashes)


def purge(
    location: str, hashes: Sequence[str], *, on_progress: Callable[[float, float, str], None]
) -> Purged:
    """Write a tombstone for every sample with one of `hashes`; shards stay unchanged.

    Raises:
        ConfigError: The manifest or an index cannot be read, or the manifest is remote.
    """
    manifest, folder = read_manifest(location), folder_of(location)
    if is_remote(folder):
        raise ConfigError(
            f"manifest (={location}) is remote; purge a local copy of the folder, and upload its "
            f"{TOMBSTONES_NAME} beside the manifest."
        )
    # A key is a prefix of its file's hash: 80 bits do not collide by chance.
    wanted = {text[:KEY_DIGITS]: text for text in hashes}
    before = read_tombstones(folder)
    buried = {(stone.shard, stone.row) for stone in before}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    new, found, known = [], set(), 0
    for done, info in enumerate(manifest.shards, 1):
        index = open_index(folder, info)
        for row, (key, digest) in enumerate(zip(index.keys, index.hashes.tolist(), strict=True)):
            asked = wanted.get(f"{digest:016x}") or wanted.get(key)
            if asked is None:
                continue
            found.add(asked)
            if (info.name, row) in buried:
                known += 1
            else:
                new.append(Tombstone(info.name, row, key, f"{digest:016x}", asked, now))
        on_progress(done, len(manifest.shards), f"{len(new)} to purge")
    if new:
        path = local_path(folder) / TOMBSTONES_NAME
        write_atomic(path, encode_tombstones([*before, *new]))
    missing = tuple(text for text in hashes if text not in found)
    return Purged(len(hashes), tuple(new), known, missing)
