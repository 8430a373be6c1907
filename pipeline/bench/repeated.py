"""Large sets of shards out of few photographs: the same files under many names."""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset
import xxhash
from numpy.typing import NDArray
from PIL import Image

from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import Ledger, Manifest, ShardInfo, write_manifest
from pipeline.shards.tar import walk_tar


def write_repeated(
    images: Sequence[bytes], out: Path, *, num_shards: int, samples_per_shard: int
) -> None:
    """Write shards that go through `images` again and again; equal shards are hard links.

    To the loader they are different files; on the disk and in the page cache they take no room.

    Args:
        images: JPEGs.
        out: New folder.
        num_shards: Shards in the manifest.
        samples_per_shard: Images in each.
    """
    out.mkdir()
    distinct = min(num_shards, max(1, len(images) // samples_per_shard))
    infos = []
    for number in range(num_shards):
        stem = f"shard-{number:06d}"
        if number < distinct:
            rows = (np.arange(samples_per_shard) + number * samples_per_shard) % len(images)
            infos.append(_write_shard([images[row] for row in rows.tolist()], out, stem))
            continue
        same = infos[number % distinct]
        names = {"name": f"{stem}.tar", "index": f"{stem}.parquet"}
        os.link(out / same.name, out / names["name"])
        os.link(out / same.index, out / names["index"])
        infos.append(same.model_copy(update=names))
    total = num_shards * samples_per_shard
    ledger = Ledger(inputs=total, accepted=total, quarantined={}, filtered={}, duplicate=0)
    write_manifest(
        out, Manifest(version=2, shards=tuple(infos), classes=None, ledger=ledger, config={})
    )


def shrink(images: Sequence[bytes], num: int, side: int) -> list[bytes]:
    """Return `num` small JPEGs made of `images`, their short side `side` px."""
    small = []
    for row in range(min(num, len(images))):
        picture = Image.open(io.BytesIO(images[row])).convert("RGB")
        scale = side / min(picture.size)
        size = [max(side, round(length * scale)) for length in picture.size]
        sink = io.BytesIO()
        picture.resize((size[0], size[1])).save(sink, "JPEG", quality=85)
        small.append(sink.getvalue())
    return [small[row % len(small)] for row in range(num)]


def _write_shard(images: Sequence[bytes], out: Path, stem: str) -> ShardInfo:
    sink = io.BytesIO()
    with webdataset.TarWriter(sink, encoder=False) as writer:
        for row, image in enumerate(images):
            writer.write({"__key__": f"{row:06d}", "jpg": image})
    tar = sink.getvalue()
    encoded = encode_index(_index(memoryview(tar), images, stem))
    (out / f"{stem}.tar").write_bytes(tar)
    (out / f"{stem}.parquet").write_bytes(encoded)
    return ShardInfo(
        name=f"{stem}.tar",
        index=f"{stem}.parquet",
        num_samples=len(images),
        num_bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        index_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def _index(tar: memoryview, images: Sequence[bytes], stem: str) -> ShardIndex:
    members = list(walk_tar(tar, stem))
    starts = _column([member.start for member in members])
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    return ShardIndex(
        keys=tuple(member.name.removesuffix(".jpg") for member in members),
        starts=starts,
        offsets=_column([member.offset for member in members]),
        sizes=_column([member.size for member in members]),
        widths=np.array([width for width, _ in sizes], np.int32),
        heights=np.array([height for _, height in sizes], np.int32),
        hashes=np.array([xxhash.xxh3_64_intdigest(image) for image in images], np.uint64),
        span_hashes=hash_spans(tar, starts),
        labels=np.full(len(members), -1, np.int32),
    )


def _column(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
