"""Shards as others write them, and the index of such: what several test files make."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.third_party.indexing import index_shards, run_here


def picture(seed: int, image_format: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (20 + seed % 7, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, image_format)
    return sink.getvalue()


def tar_of(members, path=None, fileobj=None):
    """Write (name, content) pairs to a tar; returns its path."""
    with tarfile.open(path, "w", fileobj=fileobj, format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_bytes(members):
    """Write (name, content) pairs to a tar in memory; returns its bytes."""
    sink = io.BytesIO()
    tar_of(members, fileobj=sink)
    return sink.getvalue()


def index(inputs, out, *, fast=False, skip_damaged=False, run=run_here):
    return index_shards(
        [str(text) for text in inputs],
        out,
        run,
        fast=fast,
        skip_damaged=skip_damaged,
        on_progress=lambda done, total, note: None,
    )


def read_indexes(out: Path) -> list[ShardIndex]:
    made = read_manifest(out)
    return [read_index(out / s.index, sha256=s.index_sha256) for s in made.shards]


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
