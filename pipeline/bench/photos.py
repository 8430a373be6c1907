"""The images of a bench: any folder of images or shards, made into shards and loose files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.parts import close_sandbox
from pipeline.ingest.sources.chunks import list_chunks
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.ingest.stage import shard_chunks
from pipeline.shards.manifest import FILE_NAME, Manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import run_here

SHARDS = "shards"
FILES = "files"
_SHARDS_PER_CORE = 4  # Peers hand out whole shards; each of their workers needs several.


def prepare(data: Path, scratch: Path, *, most: int, least: int, cores: int) -> Manifest:
    """Make `scratch`/shards and `scratch`/files, which hold the same encoded images.

    Args:
        data: Folder tree of images, or shards of this project: their folder or manifest.
        scratch: Folder of the run.
        most: Images taken, evenly spread over what there is.
        least: Images that a contest needs.
        cores: The number of shards grows with it.

    Raises:
        ConfigError: `data` is not there, or holds too few images.
    """
    if (data / FILE_NAME).exists() or data.name == FILE_NAME:
        store = Store(data)
        ids = _spread(store.manifest.num_samples, most)
        folder = scratch / "given"
        _write_files(store, ids, folder)
    else:
        folder = data
    manifest = _shard(folder, scratch / SHARDS, most=most, least=least, cores=cores)
    _write_files(Store(scratch / SHARDS), np.arange(manifest.num_samples), scratch / FILES)
    return manifest


def _shard(folder: Path, out: Path, *, most: int, least: int, cores: int) -> Manifest:
    sources = parse_sources([str(folder)], (), ())
    chunks, num_inputs = _thin(list_chunks(sources), most)
    config = ShardConfig(
        samples_per_shard=max(1, num_inputs // (_SHARDS_PER_CORE * cores)), near_duplicates=False
    )
    try:
        job = ShardRequest(out, sources, config)
        manifest = shard_chunks(chunks, job, run_here, on_progress=lambda progress: None)
    finally:
        close_sandbox()
    if manifest.num_samples < least:
        raise ConfigError(
            f"data (={folder}) holds {manifest.num_samples} usable images, fewer than the {least} "
            "of a batch; give a folder with more images."
        )
    return manifest


def _thin(chunks: Sequence[Chunk], most: int) -> tuple[list[Chunk], int]:
    """Keep at most `most` of the files of `chunks`, evenly spread; returns their number, too."""
    rows = np.array(_spread(sum(len(chunk.files) for chunk in chunks), most), np.int64)
    kept, start = [], 0
    for chunk in chunks:
        inside = rows[(rows >= start) & (rows < start + len(chunk.files))] - start
        listed = tuple(chunk.files)
        files = tuple(listed[row] for row in inside.tolist())
        kept.append(replace(chunk, files=files, num_inputs=len(files)))
        start += len(chunk.files)
    return kept, len(rows)


def _spread(num: int, most: int) -> list[int]:
    """Return at most `most` of `num` rows, evenly spread.

    >>> _spread(5, 9), _spread(9, 3)
    ([0, 1, 2, 3, 4], [0, 3, 6])
    """
    return [row * num // min(num, most) for row in range(min(num, most))]


def _write_files(store: Store, ids: "np.typing.ArrayLike", folder: Path) -> None:
    folder.mkdir()
    rows = np.asarray(ids, np.int64)
    for row, payload in zip(rows.tolist(), store.read(rows).payloads, strict=True):
        (folder / f"{row:08}.jpg").write_bytes(payload.tobytes())
    store.close()
