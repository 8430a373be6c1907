"""Samples that must not be trained on any more: named beside the manifest, never shown again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchConfig, FetchError, read_bytes
from pipeline.remote.location import join, shown
from pipeline.shards.damage import Damage
from pipeline.shards.manifest import Manifest

FILE_NAME = "tombstones.jsonl"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One purged sample: a line of the file. Holds no image and no path."""

    shard: str
    """Name of the shard, as in the manifest."""
    row: int
    """Of the sample in the shard's index."""
    key: str
    hash: str
    """xxh3 (64 bit) of the stored image, 16 hex digits."""
    asked: str
    """The hash that the removal was asked by."""
    time: str
    """ISO 8601, UTC."""


def read_tombstones(folder: str) -> list[Tombstone]:
    """Read the tombstones of a manifest's folder, a path or a URL; none where there is no file.

    Raises:
        ConfigError: The file is damaged.
        FetchError: It cannot be fetched.
        OSError: It cannot be read.
    """
    location = join(folder.rstrip("/") + "/", FILE_NAME)
    try:
        text = read_bytes(location, FetchConfig()).decode("utf-8")
    except FileNotFoundError:
        return []
    except FetchError as error:
        if error.kind == "missing":
            return []
        raise
    except UnicodeDecodeError:
        raise _damaged(location, 1) from None
    stones = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            stones.append(_parse(json.loads(line)))
        except (ValueError, TypeError):
            raise _damaged(location, number) from None
    return stones


def purged_samples(manifest: Manifest, folder: str) -> dict[int, Damage]:
    """Find the samples of a manifest that have a tombstone now, by id.

    Raises:
        ConfigError: The tombstones are damaged, or name a shard or row that is not there.
        FetchError: They cannot be fetched.
        OSError: They cannot be read.
    """
    numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
    starts = np.concatenate([[0], np.cumsum(manifest.shard_counts)]).tolist()
    found = {}
    for stone in read_tombstones(folder):
        number = numbers.get(stone.shard, -1)
        if number < 0 or not 0 <= stone.row < manifest.shards[number].num_samples:
            raise ConfigError(
                f"tombstones name sample {stone.row} of shard (={stone.shard}), which the "
                "manifest beside them does not; restore the file, or purge again."
            )
        sample_id, why = starts[number] + stone.row, f"purged at {stone.time}."
        found[sample_id] = Damage(sample_id, stone.shard, stone.key, -1, "purged", why)
    return found


def encode_tombstones(stones: Sequence[Tombstone]) -> bytes:
    """Serialise, a line each."""
    return "".join(json.dumps(asdict(stone)) + "\n" for stone in stones).encode()


def _parse(raw: Any) -> Tombstone:
    stone = Tombstone(**raw)
    if not isinstance(stone.row, int) or not isinstance(stone.shard, str):
        raise TypeError
    return stone


def _damaged(location: str, number: int) -> ConfigError:
    return ConfigError(
        f"tombstones (={shown(location)}) are damaged in line {number}: what must not be trained "
        "on cannot be told. Restore the file, or purge again."
    )
