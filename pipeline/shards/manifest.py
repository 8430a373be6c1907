"""The manifest: what a set of shards holds, with an account of every input."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.atomic import open_atomic, write_atomic
from pipeline.config import Config, ConfigError, parse
from pipeline.remote.fetch import FetchConfig, FetchError, read_bytes, read_if_there
from pipeline.remote.location import is_remote, join, redact_url
from pipeline.shards.damage import Damage

FILE_NAME = "manifest.json"
LEDGER_NAME = "ledger.jsonl"
PICTURES_NAME = "left_out.parquet"
"""Thumbnails of excluded images."""
INDEX_FOLDER = "index"
"""Folder of indexes whose shards lie elsewhere."""


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by reason, in order of the reason."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


class Ledger(Config):
    """Where every input went; that they add up is an invariant."""

    inputs: int = Field(ge=0)
    """Files examined."""
    accepted: int = Field(ge=0)
    """Images in the shards."""
    quarantined: dict[str, int]
    """Inputs that are not an intact image, by reason."""
    filtered: dict[str, int]
    """Intact images excluded by a configured rule, by reason."""
    duplicate: int = Field(ge=0)
    """Images that another input represents: equal bytes, or near-duplicates."""
    near_duplicate: int = Field(0, ge=0)
    """The part of `duplicate` that resembles an accepted image without sharing its bytes."""

    @model_validator(mode="after")
    def _everything_is_accounted_for(self) -> Self:
        out = self.accepted + self.num_quarantined + self.num_filtered + self.duplicate
        if out != self.inputs:
            raise ValueError(
                f"inputs (={self.inputs}) must equal accepted (={self.accepted}) + quarantined "
                f"(={self.num_quarantined}) + filtered (={self.num_filtered}) + duplicate "
                f"(={self.duplicate})."
            )
        if self.near_duplicate > self.duplicate:
            raise ValueError(
                f"near_duplicate (={self.near_duplicate}) must be a part of duplicate "
                f"(={self.duplicate})."
            )
        return self

    @property
    def num_quarantined(self) -> int:
        """Total of quarantined inputs."""
        return sum(self.quarantined.values())

    @property
    def num_filtered(self) -> int:
        """Total of filtered inputs."""
        return sum(self.filtered.values())

    def describe(self) -> str:
        """Format the invariant, with the reasons."""

        def reasons(counts: dict[str, int]) -> str:
            listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
            return f" ({listed})" if listed else ""

        near = f" (near {self.near_duplicate})" if self.near_duplicate else ""
        return (
            f"{self.inputs} inputs = {self.accepted} accepted + "
            f"{self.num_quarantined} quarantined{reasons(self.quarantined)} + "
            f"{self.num_filtered} filtered{reasons(self.filtered)} + "
            f"{self.duplicate} duplicate{near}"
        )

    @classmethod
    def all_accepted(cls, num: int) -> Self:
        """Account for inputs that are all in the shards."""
        return cls(inputs=num, accepted=num, quarantined={}, filtered={}, duplicate=0)

    @classmethod
    def sum(cls, ledgers: Iterable[Self]) -> Self:
        """Add up the ledgers of several sources."""
        found = list(ledgers)
        return cls(
            inputs=sum(ledger.inputs for ledger in found),
            accepted=sum(ledger.accepted for ledger in found),
            quarantined=add_counts(ledger.quarantined for ledger in found),
            filtered=add_counts(ledger.filtered for ledger in found),
            duplicate=sum(ledger.duplicate for ledger in found),
            near_duplicate=sum(ledger.near_duplicate for ledger in found),
        )


class ShardInfo(Config):
    """One tar and its index, as written."""

    name: str
    """Path of the tar relative to the manifest's folder, absolute path, or URL."""
    index: str
    """Path of its index relative to the manifest's folder."""
    num_samples: int = Field(gt=0)
    num_bytes: int = Field(gt=0)
    """Size of the tar."""
    sha256: str | None
    """SHA-256 of the tar; None after a fast index, whose images are hashed on first use."""
    index_sha256: str
    """SHA-256 of the index."""
    ledger: str | None = None
    """Path of the table of its inputs, relative to the manifest's folder; None for shards that
    were not made here."""


class Manifest(Config):
    """A set of shards in a fixed order, in which sample ids count."""

    version: Literal[2]
    shards: tuple[ShardInfo, ...] = Field(min_length=1)
    classes: tuple[str, ...] | None
    """Names of the labels, None without labels."""
    ledger: Ledger
    sources: dict[str, Ledger] = Field(default_factory=dict)
    """Ledger of each source, adding up to `ledger`; empty if sources were not told apart."""
    notes: dict[str, int] = Field(default_factory=dict)
    """Number of stored images by note: oriented, reduced, ..."""
    notes_dropped: dict[str, int] = Field(default_factory=dict)
    """Number of members of archives that are no inputs and say nothing about one, by reason:
    apple_double, not_read, too_big, ..."""
    label_conflicts: int = Field(0, ge=0)
    """Stored images without a label because their copies contradict each other."""
    config: dict[str, Any]
    """The configuration that made the shards."""

    @model_validator(mode="after")
    def _shards_hold_what_was_accepted(self) -> Self:
        held = sum(shard.num_samples for shard in self.shards)
        if held != self.ledger.accepted:
            raise ValueError(f"shards hold {held} samples, accepted (={self.ledger.accepted}).")
        return self

    @model_validator(mode="after")
    def _sources_add_up(self) -> Self:
        if self.sources and Ledger.sum(self.sources.values()) != self.ledger:
            raise ValueError("the ledgers of the sources do not add up to the ledger.")
        return self

    def describe(self) -> str:
        """Format the account of the inputs, and of the notes that say nothing."""
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.notes_dropped.items())
        return self.ledger.describe() + (f"; notes dropped: {dropped}" if dropped else "")

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self.ledger.accepted

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the shards' content, their order and the classes."""
        rows = [f"{s.num_samples} {s.sha256 or s.index_sha256}" for s in self.shards]
        text = "\n".join([*rows, *(self.classes or ())])
        return xxhash.xxh3_64_hexdigest(text.encode())

    @property
    def shard_counts(self) -> NDArray[np.int64]:
        """int64 (S,), samples in each shard."""
        return np.array([shard.num_samples for shard in self.shards], dtype=np.int64)


def check_size(path: Path, info: ShardInfo) -> None:
    """Refuse a shard that is missing or has another size than was written.

    Raises:
        ConfigError: The shard is missing or has another size.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"shard (={path}) cannot be read: {error.strerror}.") from None
    if size != info.num_bytes:
        raise ConfigError(
            f"shard (={path}) has {size} bytes, its manifest says {info.num_bytes}: it was cut or "
            "replaced after it was written. Restore it or shard again."
        )


def manifest_location(location: str | Path) -> str:
    """Return the manifest of a folder of shards, given either, as a path or a URL."""
    text = str(location)
    is_folder = not text.endswith(".json") if is_remote(text) else Path(text).is_dir()
    return join(text.rstrip("/") + "/", FILE_NAME) if is_folder else text


def folder_of(location: str | Path) -> str:
    """Return the folder that a manifest's relative names are resolved against."""
    return manifest_location(location).rpartition("/")[0] or "."


def read_manifest(location: str | Path) -> Manifest:
    """Read `manifest.json` of a shard folder, given the folder or the file, as a path or a URL.

    Raises:
        ConfigError: The file is missing, not JSON, edited or of another version.
    """
    file = manifest_location(location)
    try:
        raw = json.loads(read_bytes(file, FetchConfig()).decode("utf-8"))
    except (OSError, FetchError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"manifest (={file}) cannot be read: {cause}. "
            "Make shards first: tessera shard SRC... --out DIR"
        ) from None
    except ValueError:
        raise ConfigError(f"manifest (={file}) is not JSON; shard again.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"manifest (={file}) is not a mapping; shard again.")
    stored = raw.pop("fingerprint", None)
    manifest = parse(Manifest, raw, file)
    if stored != manifest.fingerprint:
        raise ConfigError(
            f"manifest (={file}) has fingerprint (={stored}), its shards give "
            f"{manifest.fingerprint}: it was edited after it was written; shard again."
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, atomically."""
    raw = {**manifest.model_dump(mode="json"), "fingerprint": manifest.fingerprint}
    write_atomic(folder / FILE_NAME, json.dumps(raw, indent=1).encode())


def ledger_line(row: Mapping[str, Any]) -> bytes:
    """Serialize one line of `ledger.jsonl`, without null and false values."""
    said = {key: value for key, value in row.items() if value is not None and value is not False}
    return (json.dumps(said) + "\n").encode()


def finish_folder(
    out: Path, manifest: Manifest, ledger: Iterable[bytes], stale: Iterable[Path] = ()
) -> None:
    """Write the ledger and then the manifest, which completes the folder; then remove `stale`.

    Args:
        out: Folder of the shards, or of their indexes.
        manifest: Manifest of the shards.
        ledger: Lines about inputs that are in no shard.
        stale: Files that belong to no shard of the manifest.
    """
    with open_atomic(out / LEDGER_NAME) as file:
        file.writelines(ledger)
    write_manifest(out, manifest)
    for path in stale:
        path.unlink(missing_ok=True)


def require_empty(out: Path) -> None:
    """Raise ConfigError unless `out` is missing or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out (={out}) is not an empty folder; choose another one.")


TOMBSTONES_NAME = "tombstones.jsonl"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One purged sample, a line of the file. Holds no image and no path."""

    shard: str
    """Name of the shard, as in the manifest."""
    row: int
    """Row of the sample in the shard's index."""
    key: str
    hash: str
    """xxh3 (64 bit) of the stored image, 16 hex digits."""
    asked: str
    """Hash given in the purge request."""
    time: str
    """ISO 8601, UTC."""


def read_tombstones(folder: str) -> list[Tombstone]:
    """Read the tombstones of a manifest's folder, a path or a URL; none if there is no file.

    Raises:
        ConfigError: The file is damaged.
        FetchError: It cannot be fetched.
        OSError: It cannot be read.
    """
    location = join(folder.rstrip("/") + "/", TOMBSTONES_NAME)
    try:
        text = (read_if_there(location) or b"").decode("utf-8")
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
    """Return the samples that currently have a tombstone, by id.

    Raises:
        ConfigError: The tombstones are damaged, or name an unknown shard or row.
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
    """Serialize to JSON lines."""
    return "".join(json.dumps(asdict(stone)) + "\n" for stone in stones).encode()


def _parse(raw: Any) -> Tombstone:
    stone = Tombstone(**raw)
    if not isinstance(stone.row, int) or not isinstance(stone.shard, str):
        raise TypeError
    return stone


def _damaged(location: str, number: int) -> ConfigError:
    return ConfigError(
        f"tombstones (={redact_url(location)}) are damaged in line {number}: what must not be "
        "trained on cannot be told. Restore the file, or purge again."
    )
