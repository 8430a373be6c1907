"""Shards read in passing with webdataset: no index, no second look, and what is lost is named."""

import re
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import Self
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.dali.webp import decodable
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import permute
from pipeline.loading.piped import STDIN, TAR_ERRORS, open_shard
from pipeline.remote.location import redact_url
from pipeline.shards.damage import Damage, DamageError, Reason
from pipeline.shards.headers import HeaderError, read_size
from pipeline.shards.store import Samples
from pipeline.shards.tar import ShardError

_ENDINGS = ("jpg", "jpeg", "png", "webp")
_MAX_BYTES = 256 * 2**20
"""Largest image read; the rest of a larger one is cut off, so it is found to be truncated."""
_DRAIN = 2**16
_is_note = re.compile(r"__[^/]*__(/|$)").match  # of a writer; webdataset passes them over

_Row = dict[str, Any]
"""What webdataset makes of a member, and then of all members of a key."""
Report = Callable[[Damage], None]
"""Takes in what is lost; what it raises ends the stream."""


@dataclass(frozen=True, slots=True)
class StreamedSample:
    """A sample read in passing."""

    sample_id: int
    """62 bits: a hash of the shard's file name and the key."""
    visit: int
    """Number of the pass."""
    url: str
    key: str
    image: NDArray[np.uint8]
    """1-D, encoded."""
    height: int
    """px."""
    width: int
    """px."""


class Unindexed:
    """The samples of one rank, endlessly: pass after pass over all shards, each in a new order.

    The ranks share the shards of a pass; a shard and its samples belong to one of them. A rank
    whose shards are short is earlier in its next pass. Standard input is passed once.

    Args:
        urls: All shards.
        seed: Seed of the order.
        rank_info: Which shards of a pass are ours.
        first_pass: Number of the first pass; each number has its own order.
        report: Receives every sample and every shard that is lost.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        seed: int,
        rank_info: RankInfo,
        first_pass: int,
        report: Report,
    ) -> None:
        self.visit = first_pass
        """Number of the pass that is read now."""
        self.num_shards = 0
        """Our shards of that pass."""
        self._urls, self._seed, self._rank_info, self._report = tuple(urls), seed, rank_info, report
        self._samples = self._forever()

    def __iter__(self) -> Iterator[StreamedSample]:
        return self._samples

    def close(self) -> None:
        """Stop reading; no process that gives a shard is left."""
        self._samples.close()

    def _forever(self) -> Generator[StreamedSample, None, None]:
        for number in count(self.visit):
            urls = shards_of_pass(self._urls, number, seed=self._seed, rank_info=self._rank_info)
            self.visit, self.num_shards = number, len(urls)
            usable = 0
            for url in urls:
                for sample in self._read(url):
                    usable += 1
                    yield sample
            if STDIN in urls:
                return
            if not usable:
                raise DamageError(
                    f"shard {redact_url(urls[0])} and {len(urls) - 1} others gave no usable sample "
                    "in a whole pass; look whether these are the shards that were meant."
                )

    def _read(self, url: str) -> Iterator[StreamedSample]:
        try:
            with open_shard(url) as stream:
                files = self._files(stream, url)
                rows = group_by_keys(files, handler=lambda error: self._lose_file(url, error))
                for row in rows:
                    found = _examine(row, self.visit)
                    if isinstance(found, StreamedSample):
                        yield found
                    else:
                        self._lose(url, row["__key__"], "header", found)
        except OSError as error:
            self._lose(url, "", "shard", f"it cannot be read: {error.strerror or error}.")
        except TAR_ERRORS as error:
            self._lose(url, "", "shard", str(error))

    def _files(self, stream: IO[bytes], url: str) -> Iterator[_Row]:
        """Walk a tar; only images are read, whatever else lies there is not even looked at.

        webdataset's own walk takes a damaged header, and a tar cut between two members, for the
        end of the shard.
        """
        with _open_tar(stream) as tar:
            try:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]
                    if not info.isdir() and not _is_note(info.name):
                        yield from self._file(tar, info, url)
            except _EndMark:
                while rest := tar.fileobj.read(_DRAIN):
                    if rest.strip(b"\0"):
                        raise ShardError("something follows the tar's end mark.") from None
                return
        raise ShardError(f"the tar is damaged at byte {tar.offset}.")

    def _file(self, tar: tarfile.TarFile, info: tarfile.TarInfo, url: str) -> Iterator[_Row]:
        key, ending = base_plus_ext(info.name)
        content = tar.extractfile(info) if info.isreg() else None
        if key is None or content is None:
            self._lose(url, info.name, "header", "it is no file with a key and an ending.")
            return
        is_image = ending.lower().rpartition(".")[2] in _ENDINGS
        data = content.read(min(info.size, _MAX_BYTES)) if is_image else b""
        yield {"fname": info.name, "data": data, "__url__": url}

    def _lose_file(self, url: str, error: Exception) -> bool:
        """Take in what webdataset cannot group: a name that comes twice. It keeps the first."""
        text = str(error.args[0])
        self._lose(url, text.partition(": ")[0], "header", text)
        return True

    def _lose(self, url: str, key: str, reason: Reason, detail: str) -> None:
        self._report(damage(url, key, reason, detail))


def _examine(row: _Row, visit: int) -> StreamedSample | str:
    """Find the image of a sample and its size, or say why it cannot be used."""
    url, key = row["__url__"], row["__key__"]
    images = [(end, data) for end, data in row.items() if end.rpartition(".")[2] in _ENDINGS]
    if not images:
        return "no member ends like an image."
    ending, data = images[0]
    if "." in ending and len(images) > 1:
        return "several members end like an image; a key ends at the first dot of a name."
    try:
        width, height = read_size(memoryview(data))
    except HeaderError as error:
        return f"the image cannot be used: {error.reason}."
    image = decodable(np.frombuffer(data, np.uint8))
    return StreamedSample(sample_id(url, key), visit, url, key, image, height, width)


def as_samples(passed: Sequence[StreamedSample]) -> Samples:
    """Make a batch of samples read in passing."""
    return Samples(
        payloads=[one.image for one in passed],
        heights=np.array([one.height for one in passed], np.int32),
        widths=np.array([one.width for one in passed], np.int32),
        labels=np.full(len(passed), -1, np.int64),
        keys=[one.key for one in passed],
        damaged={},
    )


def damage(url: str, key: str, reason: Reason, detail: str) -> Damage:
    """Describe a sample that is lost, or a shard where `key` is empty."""
    text = f"key {key}: {detail}" if key else detail
    return Damage(sample_id(url, key), redact_url(url), key, -1, reason, text)


def sample_id(url: str, key: str) -> int:
    """Name a sample by its shard's file name and its key, in 62 bits, wherever the shard lies."""
    name = redact_url(url).rpartition("/")[2]
    return xxhash.xxh3_64_intdigest(f"{name}\n{key}".encode(errors="surrogateescape")) >> 2


def shards_of_pass(
    urls: Sequence[str], number: int, *, seed: int, rank_info: RankInfo
) -> list[str]:
    """Shards that a rank reads in a pass, in order; the ranks' together are all."""
    size = len(urls)
    key = xxhash.xxh3_64_intdigest(f"{seed}:{number}:stream".encode())
    order = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    return [urls[n] for n in order[rank_info.rank :: rank_info.world_size].tolist()]


class _EndMark(Exception):  # noqa: N818 - no error: a tar ends so.
    """A block of zeros where a header might stand."""


class _Header(tarfile.TarInfo):
    """A header that tells damage from the end; to tarfile both are the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise ShardError("the tar is cut: its end mark is missing.")
        if not buf[0] and not buf.strip(b"\0"):
            raise _EndMark
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            raise ShardError("a header is damaged, or this is no tar.") from None


def _open_tar(stream: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header)
    except _EndMark:
        raise ShardError("the tar is empty.") from None
