"""Images for the contests of `tessera bench shard`, and a look at what was made of them."""

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from pipeline.bench.photos import FILES, prepare
from pipeline.bench.shard_peers import STORED
from pipeline.ingest.gate.encode import stored_size

Kind = Literal["large", "small", "png"]
LARGE_SIDE = 1_500
"""Short side of the large photographs, px."""
_LARGE_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many images there are of each kind, at most."""

    small: int
    large: int
    png: int


def make_inputs(data: Path, scratch: Path, numbers: Numbers) -> dict[Kind, Path]:
    """Make folders of photographs as shards store them, of enlarged ones and of PNGs.

    Args:
        data: Folder tree of images, or of shards.
        scratch: Folder of the run.
        numbers: Of each kind.

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
    """List what the images of a folder must be stored as: (width, height), sorted."""
    sizes = []
    for path in files.iterdir():
        with Image.open(path) as picture:
            sizes.append(stored_size(*picture.size, STORED))
    return sorted(sizes)


def complaint(out: Path, wanted: Sequence[tuple[int, int]]) -> str | None:
    """Decode all that a contestant wrote; say what is wrong with it, None where it is as wanted.

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
