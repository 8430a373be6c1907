"""One shard of labelled images that are trusted already: what it stores of each, tar and index."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from pipeline.atomic import write_atomic
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.judge import decode
from pipeline.crawl.refusal import RefusedError
from pipeline.dali.decode import decode_rgb
from pipeline.shards.headers import MAX_PIXELS, HeaderError, read_size
from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import ShardInfo
from pipeline.shards.samples import group_members
from pipeline.shards.tar import Member, walk_tar
from pipeline.shards.tar_writer import write_samples

_WHOLE = ShardConfig(max_side=16_000, max_aspect=4.0, max_pixels=MAX_PIXELS)
"""Nothing is reduced: a side of this length with the next longer one exceeds max_pixels."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One image on its way into a shard."""

    key: str
    """Its name in the shard, no other image's; without a dot."""
    data: bytes
    """The file, as it was found."""
    label: int = -1
    """Class number, -1 where the image has none, or several."""
    source: str = ""
    """Where it was found, in plain Unicode: named in the ledger and in the sample's .json."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the sample's .json says."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Other files of the sample, by ending: xml."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a shard stores of an image."""

    image: Packed
    data: bytes
    ending: str
    width: int
    """px."""
    height: int
    """px."""
    problem: str = ""
    """Why `data` is not the file's own bytes; empty where it is."""


def store_image(image: Packed) -> Stored | str:
    """Return what a shard stores of an image, or the reason why it stores none.

    JPEG, PNG and WebP are stored byte for byte. What the decoder that trains does not take, and
    Pillow does, is stored as RGB PNG, upright, alpha on white.
    """
    data = image.data
    try:
        width, height = read_size(memoryview(data))
    except HeaderError as error:
        # No JPEG, PNG or WebP: another format. What else is wrong, no other decoder mends.
        return _encode(image, "format") if error.reason == "header" else error.reason
    pixels = decode_rgb(data)
    # This decoder turns images as EXIF says; the loader takes them as they are stored.
    if pixels is None or sorted(pixels.shape[:2]) != sorted((height, width)):
        return _encode(image, "decoder_refuses")
    ending = "jpg" if data[:2] == b"\xff\xd8" else "png" if data[1:4] == b"PNG" else "webp"
    return Stored(image, data, ending, width, height)


def write_files(stored: Sequence[Stored], path: Path, classes: tuple[str, ...] | None) -> ShardInfo:
    """Write a tar and its index, each whole or not at all; equal images give equal bytes.

    The index is made by walking the finished tar.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write_tar(partial, stored, classes)
        with (
            partial.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
        ):
            with memoryview(tar) as buffer:
                encoded = encode_index(_index_tar(buffer, stored, path.name))
                sha256 = hashlib.sha256(buffer).hexdigest()
            num_bytes = len(tar)
        index_path = path.with_suffix(".parquet")
        write_atomic(index_path, encoded)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return ShardInfo(
        name=path.name,
        index=index_path.name,
        num_samples=len(stored),
        num_bytes=num_bytes,
        sha256=sha256,
        index_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def _encode(image: Packed, problem: str) -> Stored | str:
    """Decode as the gate does, strictly, and store without loss."""
    try:
        pixels = decode(image.data, _WHOLE).in_colour()
    except RefusedError as error:
        return error.reason
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    sink = io.BytesIO()
    shown.save(sink, "PNG")
    return Stored(image, sink.getvalue(), "png", shown.width, shown.height, problem)


def _write_tar(path: Path, stored: Sequence[Stored], classes: tuple[str, ...] | None) -> None:
    with path.open("wb") as file:
        write_samples(file, ((one.image.key, _files(one, classes)) for one in stored))
        os.fsync(file.fileno())


def _files(one: Stored, classes: tuple[str, ...] | None) -> dict[str, bytes]:
    return {**one.image.members, one.ending: one.data, "json": _about(one, classes)}


def _about(stored: Stored, classes: tuple[str, ...] | None) -> bytes:
    image = stored.image
    about: dict[str, Any] = {
        **image.about,
        "width": stored.width,
        "height": stored.height,
        "content_hash": xxhash.xxh3_128_hexdigest(image.data),
    }
    if image.source:
        about["source"] = image.source
    if classes is not None and image.label >= 0:
        about["label"] = classes[image.label]
    return json.dumps(about, sort_keys=True).encode()


def _index_tar(buffer: memoryview, stored: Sequence[Stored], shard: str) -> ShardIndex:
    samples = group_members(walk_tar(buffer, shard), shard)
    assert [s.key for s in samples] == [s.image.key for s in stored], "the writer changed the order"
    images = [sample.find_image() for sample in samples]
    found = [image for image in images if isinstance(image, Member)]
    assert len(found) == len(stored), "a sample has another image, or none"
    hashes = [xxhash.xxh3_64_intdigest(buffer[m.offset : m.offset + m.size]) for m in found]
    starts = np.array([sample.start for sample in samples], np.int64)
    return ShardIndex(
        keys=tuple(sample.key for sample in samples),
        starts=starts,
        offsets=np.array([member.offset for member in found], np.int64),
        sizes=np.array([member.size for member in found], np.int64),
        widths=np.array([one.width for one in stored], np.int32),
        heights=np.array([one.height for one in stored], np.int32),
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(buffer, starts),
        labels=np.array([one.image.label for one in stored], np.int32),
    )
