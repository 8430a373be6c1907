"""Large sets of shards out of few photographs: the same files under many names."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.shards.manifest import Ledger, Manifest, write_manifest
from pipeline.shards.writer import write_images


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
            infos.append(write_images(out / f"{stem}.tar", [images[row] for row in rows.tolist()]))
            continue
        same = infos[number % distinct]
        names = {"name": f"{stem}.tar", "index": f"{stem}.parquet"}
        os.link(out / same.name, out / names["name"])
        os.link(out / same.index, out / names["index"])
        infos.append(same.model_copy(update=names))
    ledger = Ledger.all_accepted(num_shards * samples_per_shard)
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
