"""The images of a bench: any folder of images or shards, made into what contenders read.

And a check of what the contenders of `tessera bench shard` made of them.
"""

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from pipeline.bench.shard_peers import STORED
from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.gate.encode import stored_size
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
_SHARDS_PER_CORE = 4  # Peers assign whole shards; each of their workers needs several.
Kind = Literal["large", "small", "png"]
LARGE_SIDE = 1_500
"""Short side of the large photographs, px."""
_LARGE_QUALITY = 92


def prepare(data: Path, scratch: Path, *, most: int, least: int, cores: int) -> Manifest:
    """Make `scratch`/shards and `scratch`/files, which hold the same encoded images.

    Args:
        data: Folder tree of images, or shards of this project: their folder or manifest.
        scratch: Folder of the run.
        most: Most images taken, evenly spread over all.
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
    """Keep at most `most` files of `chunks`, evenly spread; return their number, too."""
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


@dataclass(frozen=True, slots=True)
class Numbers:
    """Most images of each kind."""

    small: int
    large: int
    png: int


def make_inputs(data: Path, scratch: Path, numbers: Numbers) -> dict[Kind, Path]:
    """Make folders of photographs as shards store them, of enlarged ones and of PNGs.

    Args:
        data: Folder tree of images, or of shards.
        scratch: Folder of the run.
        numbers: Numbers of images by kind.

    Raises:
        ConfigError: `data` is not there, or holds fewer than two usable images.
    """
    prepare(data, scratch, most=numbers.small, least=2, cores=1)
    small = scratch / FILES
    paths = sorted(small.iterdir())
    large, png = scratch / "large", scratch / "png"
    for folder in (large, png):
        folder.mkdir()
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda path: _enlarge(path, large), paths[: numbers.large]))
    for path in paths[: numbers.png]:
        with Image.open(path) as picture:
            picture.save(png / f"{path.stem}.png", compress_level=3)
    return {"large": large, "small": small, "png": png}


def _enlarge(path: Path, out: Path) -> None:
    with Image.open(path) as picture:
        scale = LARGE_SIDE / min(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        picture.resize(size).save(out / path.name, "JPEG", quality=_LARGE_QUALITY)


def stored_sizes(files: Path) -> list[tuple[int, int]]:
    """List the sizes that the images of a folder must be stored at: (width, height), sorted."""
    sizes = []
    for path in files.iterdir():
        with Image.open(path) as picture:
            sizes.append(stored_size(*picture.size, STORED))
    return sorted(sizes)


def complaint(out: Path, wanted: Sequence[tuple[int, int]]) -> str | None:
    """Decode all that a contender wrote; return what is wrong, None where all is as it must be.

    Args:
        out: Folder of tars or of parts.
        wanted: (width, height) of every image, sorted; a pixel more or less is rounding.
    """
    found = []
    for image in _written(out):
        try:
            height, width = simplejpeg.decode_jpeg(image, strict=True).shape[:2]
        except ValueError as error:
            return f"failed: it wrote an image that does not decode ({error})"
        found.append((width, height))
    if len(found) != len(wanted):
        return f"failed: it wrote {len(found)} of {len(wanted)} images"
    off = np.abs(np.array(sorted(found)) - np.array(wanted)).max(axis=1)
    if (off > 1).any():
        row = int(off.argmax())
        return f"failed: it wrote {sorted(found)[row]} px instead of {wanted[row]} px"
    return None


def _written(out: Path) -> Iterator[bytes]:
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg")):
                    opened = tar.extractfile(member)
                    assert opened is not None
                    yield opened.read()
    for payloads in sorted(out.glob("*.bin")):
        data = payloads.read_bytes()
        table = pq.read_table(out / f"{payloads.stem}.parquet", columns=["offset", "size"])
        for row in table.to_pylist():
            if row["size"]:
                yield data[row["offset"] : row["offset"] + row["size"]]
