"""Merge manifests, or split one; the shards stay in place."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, join, local_path
from pipeline.shards.index import ShardIndex, encode_index
from pipeline.shards.labels import sort_classes
from pipeline.shards.manifest import (
    INDEX_FOLDER,
    TOMBSTONES_NAME,
    Ledger,
    Manifest,
    ShardInfo,
    Tombstone,
    add_counts,
    encode_tombstones,
    folder_of,
    read_manifest,
    read_tombstones,
    require_empty,
    write_manifest,
)
from pipeline.shards.third_party.indexing import Progress
from pipeline.upkeep.verify import open_index


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of a merge."""

    manifest: Manifest
    repeated: int
    """Samples that share their stored image with another one; all are kept."""


def merge(locations: Sequence[str], out: Path, *, on_progress: Progress) -> Merged:
    """Merge manifests into one; labels refer to the classes of all, sorted.

    Raises:
        ConfigError: A manifest cannot be read, a shard occurs twice, or `out` is not empty.
    """
    require_empty(out)
    sets = [(read_manifest(location), folder_of(location)) for location in locations]
    classes = sort_classes({name for made, _ in sets for name in made.classes or ()})
    position = {name: number for number, name in enumerate(classes)}
    shards: list[ShardInfo] = []
    stones: list[Tombstone] = []
    hashes: Counter[int] = Counter()
    total = sum(len(made.shards) for made, _ in sets)
    for made, folder in sets:
        numbers = np.array([*(position[name] for name in made.classes or ()), -1], np.int32)
        for info in made.shards:
            index = open_index(folder, info)
            moved = replace(index, labels=numbers[index.labels])
            hashes.update(digest for digest in index.hashes.tolist() if digest)
            shards.append(_place(out, folder, info, moved, len(shards)))
            on_progress(len(shards), total, "")
        stones += _moved(read_tombstones(folder), folder)
    twice = [name for name, count in Counter(info.name for info in shards).items() if count > 1]
    if twice:
        raise ConfigError(f"shard (={twice[0]}) is listed in two manifests; give each set once.")
    merged = Manifest(
        version=2,
        shards=tuple(shards),
        classes=tuple(classes) or None,
        ledger=Ledger.sum(made.ledger for made, _ in sets),
        notes_dropped=add_counts(made.notes_dropped for made, _ in sets),
        label_conflicts=sum(made.label_conflicts for made, _ in sets),
        config={"merged": list(locations)},
    )
    _finish(out, merged, stones)
    return Merged(merged, sum(count for count in hashes.values() if count > 1))


def split(
    location: str, out: Path, shares: Mapping[str, float], *, seed: int, on_progress: Progress
) -> dict[str, Manifest]:
    """Assign every shard to one of several parts, by hash of its content.

    Args:
        location: A folder of shards or the manifest in it, as a path or a URL.
        out: Receives a folder with a manifest for each part.
        shares: Share of the samples by part name, summing to 1; met to within a shard.
        seed: Seed of the assignment.
        on_progress: Called after every shard.

    Raises:
        ConfigError: The manifest cannot be read, a part would be empty, or `out` is not empty.
    """
    require_empty(out)
    made, folder = read_manifest(location), folder_of(location)
    parts = _assign(made, shares, seed)
    stones = _moved(read_tombstones(folder), folder)
    written: dict[str, Manifest] = {}
    done = 0
    for name, numbers in parts.items():
        shards: list[ShardInfo] = []
        for number in numbers:
            info = made.shards[number]
            index = open_index(folder, info)
            shards.append(_place(out / name, folder, info, index, len(shards)))
            done += 1
            on_progress(done, len(made.shards), name)
        part = Manifest(
            version=2,
            shards=tuple(shards),
            classes=made.classes,
            ledger=Ledger.all_accepted(sum(info.num_samples for info in shards)),
            config={"split": location, "part": name, "shares": dict(shares), "seed": seed},
        )
        ours = {info.name for info in shards}
        _finish(out / name, part, [stone for stone in stones if stone.shard in ours])
        written[name] = part
    return written


def _assign(made: Manifest, shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Cut the shards, ordered by hash, at the shares."""
    names = [shard.sha256 or shard.index_sha256 for shard in made.shards]
    order = sorted(
        range(len(names)), key=lambda n: xxhash.xxh3_64_intdigest(f"{seed}:{names[n]}".encode())
    )
    reached = np.cumsum([made.shards[n].num_samples for n in order])
    borders = np.rint(np.cumsum(list(shares.values())) * made.num_samples)
    # A shard belongs to the part that holds its middle.
    middles = reached - np.array([made.shards[n].num_samples for n in order]) / 2
    owners = np.minimum(np.searchsorted(borders, middles, side="right"), len(shares) - 1)
    parts = {
        name: sorted(order[i] for i in np.flatnonzero(owners == number))
        for number, name in enumerate(shares)
    }
    empty = [name for name, numbers in parts.items() if not numbers]
    if empty:
        raise ConfigError(
            f"part (={empty[0]}) with a share of {shares[empty[0]]:g} would get none of "
            f"{len(names)} shards; raise its share, or shard into more."
        )
    return parts


def _place(out: Path, folder: str, info: ShardInfo, index: ShardIndex, number: int) -> ShardInfo:
    """Write a shard's index into `out`; returns its entry for a manifest there."""
    name = _absolute(folder, info.name)
    stem = Path(info.name).name.removesuffix(".tar")
    path = out / INDEX_FOLDER / f"{number:06}-{stem}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = encode_index(index)
    write_atomic(path, encoded)
    return info.model_copy(
        update={
            "name": name,
            "index": f"{INDEX_FOLDER}/{path.name}",
            "index_sha256": hashlib.sha256(encoded).hexdigest(),
            "ledger": _absolute(folder, info.ledger) if info.ledger else None,
        }
    )


def _absolute(folder: str, name: str) -> str:
    url = join(folder, name)
    return url if is_remote(url) else os.fspath(local_path(url).absolute())


def _moved(stones: Sequence[Tombstone], folder: str) -> list[Tombstone]:
    return [replace(stone, shard=_absolute(folder, stone.shard)) for stone in stones]


def _finish(out: Path, made: Manifest, stones: Sequence[Tombstone]) -> None:
    """Write the tombstones, then the manifest."""
    if stones:
        write_atomic(out / TOMBSTONES_NAME, encode_tombstones(stones))
    write_manifest(out, made)
