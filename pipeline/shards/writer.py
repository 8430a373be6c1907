"""The one writer of shards: tar and index, both atomic, then the report that vouches for them."""

import hashlib
import io
import json
import mmap
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import xxhash
from pydantic import Field

from pipeline.atomic import open_atomic, write_atomic
from pipeline.config import ConfigError, parse
from pipeline.remote.location import is_remote
from pipeline.shards.headers import read_size
from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import Ledger, ShardInfo
from pipeline.shards.tar import Member, walk_tar

KEY_DIGITS = 20
"""Hex digits of the content hash in a key: at 80 bits a billion images collide once in two million
runs."""


@dataclass(frozen=True, slots=True)
class NewSample:
    """One image on its way into a shard."""

    key: str
    """Unique in its shard."""
    files: Mapping[str, bytes]
    """Files by ending."""
    ending: str
    """Ending of the image among `files`."""
    width: int
    """px."""
    height: int
    """px."""
    label: int = -1
    """Class number, -1 for none."""


def write_samples(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar of KEY.ENDING members; equal samples give equal bytes on any machine.

    The bytes equal those of webdataset.TarWriter with these constants for owner, mode and time,
    but that package imports torch, which costs seconds and memory in every writer process.

    Args:
        file: Positioned at its start.
        samples: Key and files by ending of each sample; endings are sorted.
    """
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, files in samples:
            for ending, data in sorted(files.items()):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))


def write_tar(
    path: Path, write: Callable[[BinaryIO], None], index: Callable[[memoryview], ShardIndex]
) -> ShardInfo:
    """Write a tar to `path` and its index beside it, both atomically.

    Args:
        path: Path of the tar.
        write: Writes the tar into a file.
        index: Makes the index from the finished tar, uint8.
    """
    index_path = path.with_suffix(".parquet")
    with open_atomic(path) as file:
        write(file)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            with memoryview(tar) as buffer:
                made = index(buffer)
                sha256 = hashlib.sha256(buffer).hexdigest()
            num_bytes = len(tar)
        encoded = encode_index(made)
        write_atomic(index_path, encoded)
    return ShardInfo(
        name=path.name,
        index=index_path.name,
        num_samples=len(made),
        num_bytes=num_bytes,
        sha256=sha256,
        index_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def write_shard(path: Path, samples: Sequence[NewSample]) -> ShardInfo:
    """Write samples in order; equal samples give equal bytes.

    The index comes from walking the finished tar, so offsets are those that were written.
    """
    pairs = ((sample.key, sample.files) for sample in samples)
    return write_tar(
        path,
        lambda file: write_samples(file, pairs),
        lambda tar: _index(tar, samples, path.name),
    )


def write_images(path: Path, images: Sequence[bytes]) -> ShardInfo:
    """Write JPEGs without labels; keys are consecutive numbers."""
    sizes = [read_size(memoryview(image)) for image in images]
    return write_shard(
        path,
        [
            NewSample(f"{row:06d}", {"jpg": image}, "jpg", width, height)
            for row, (image, (width, height)) in enumerate(zip(images, sizes, strict=True))
        ],
    )


def _index(tar: memoryview, samples: Sequence[NewSample], shard: str) -> ShardIndex:
    members = list(walk_tar(tar, shard))
    names: list[str] = []
    firsts: list[Member] = []
    images: list[Member] = []
    for sample in samples:
        endings = sorted(sample.files)
        mine = members[len(names) : len(names) + len(endings)]
        names += [f"{sample.key}.{ending}" for ending in endings]
        firsts.append(mine[0])
        images.append(mine[endings.index(sample.ending)])
    assert [member.name for member in members] == names, "the writer changed the order"
    hashes = [xxhash.xxh3_64_intdigest(tar[m.offset : m.offset + m.size]) for m in images]
    starts = np.array([member.start for member in firsts], np.int64)
    return ShardIndex(
        keys=tuple(sample.key for sample in samples),
        starts=starts,
        offsets=np.array([image.offset for image in images], np.int64),
        sizes=np.array([image.size for image in images], np.int64),
        widths=np.array([sample.width for sample in samples], np.int32),
        heights=np.array([sample.height for sample in samples], np.int32),
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(tar, starts),
        labels=np.array([sample.label for sample in samples], np.int32),
    )


class ShardReport(ShardInfo):
    """Proof that a shard is complete: written last, beside its index."""

    num_samples: int = Field(ge=0)
    """0 if no input was usable; there may be no tar then."""
    num_bytes: int = Field(ge=0)
    ledger_sha256: str | None = None
    """SHA-256 of the ledger table."""
    plan_id: str
    """What the shard was made from: equal ids give equal bytes."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Name and reason of every excluded input."""

    @property
    def info(self) -> ShardInfo:
        """The shard's entry in a manifest."""
        return ShardInfo(**self.model_dump(include=set(ShardInfo.model_fields)))

    def is_whole(self, folder: Path) -> bool:
        """Compare the files in `folder` with the report; raises OSError if one is missing."""
        has_tar = self.num_samples and not is_remote(self.name)
        if has_tar and (folder / self.name).stat().st_size != self.num_bytes:
            return False
        hashes = ((self.index, self.index_sha256), (self.ledger, self.ledger_sha256))
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
            for name, sha256 in hashes
            if name
        )


Report = TypeVar("Report", bound=ShardReport)


def write_report(path: Path, report: ShardReport) -> None:
    """Write a report, after every file that it vouches for."""
    write_atomic(path, report.model_dump_json(indent=1, exclude_defaults=True).encode())


def read_report(path: Path, kind: type[Report], plan_id: str | None = None) -> Report | None:
    """Read a report; None if it or a file it vouches for is missing, damaged or replaced.

    Args:
        path: Path of the report; the files are beside it.
        kind: Type of the report.
        plan_id: Required plan id; None accepts any.
    """
    try:
        report = parse(kind, json.loads(path.read_text(encoding="utf-8")), str(path))
        is_whole = report.is_whole(path.parent)
    except (OSError, ValueError):
        return None
    return report if is_whole and plan_id in (None, report.plan_id) else None


def count_inputs(reports: Sequence[ShardReport], what: str) -> Ledger:
    """Make the ledger of shards whose images are neither filtered nor deduplicated.

    Raises:
        ConfigError: No input is usable; the message counts reasons, and calls the inputs `what`.
    """
    reasons = Counter(reason for report in reports for _, reason in report.left_out)
    quarantined = dict(sorted(reasons.items()))
    accepted = sum(report.num_samples for report in reports)
    inputs = accepted + reasons.total()
    if not accepted:
        listed = ", ".join(f"{count} {reason}" for reason, count in quarantined.items())
        raise ConfigError(
            f"0 usable of {inputs} {what}{': ' + listed if listed else ''}. "
            f"Give other {what.split()[-1]}."
        )
    return Ledger(
        inputs=inputs, accepted=accepted, quarantined=quarantined, filtered={}, duplicate=0
    )
