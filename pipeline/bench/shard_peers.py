"""Who makes shards in the contests of `tessera bench shard`: each gives its whole path to a tar.

All take the same files, one core, and reduce to the same side: JPEG of quality 90, chroma at half
the resolution (4:2:0), the default of the peers' libraries. `tessera_444` is our default, with
chroma at full resolution.
"""

import importlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import simplejpeg
from PIL import Image

from pipeline.bench.worker import Answer, cpu_seconds
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import PartSpec, close_sandbox, make_part
from pipeline.ingest.sources.chunks import list_chunks
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.source_list import SourceList, parse_sources

Name = Literal[
    "tessera",
    "tessera_near",
    "tessera_444",
    "tessera_shards",
    "img2dataset",
    "webdataset",
    "decode_only",
    "copy",
]
_SLOW: dict[Name, tuple[str, ...]] = {
    "tessera_shards": ("pipeline.ingest.stage",),
    "img2dataset": ("cv2", "webdataset"),
    "webdataset": ("webdataset",),
    "copy": ("webdataset",),
}
"""Modules that are imported before the first command, since they take long to load."""
STORED = ShardConfig().max_side
"""Short side of what is stored, px, where the image is not smaller."""
QUALITY = 90
_CHUNK_INPUTS = 256  # As in `tessera shard`.


@dataclass(frozen=True, slots=True)
class Maker:
    """A contender that knows its inputs."""

    make: Callable[[Path], Any]
    """Writes shards of all inputs into a new folder."""
    images: int
    """Number of inputs."""
    variant: str = ""
    """Which of several implementations it is."""


@contextmanager
def contend(name: Name, core: int | None) -> Iterator[Answer]:
    """Be a contender, as a worker: make shards of the images in a folder, command by command.

    A command is {"files", "out"}; an answer has the number of images, seconds, CPU seconds, and the
    variant as `setting`.

    Args:
        name: Name of the contender.
        core: Number of the core that it keeps to after its imports, which use all; None keeps all.
    """
    for module in _SLOW.get(name, ()):
        with suppress(ImportError):  # What is missing is named by `open_maker`.
            importlib.import_module(module)
    cores = sorted(os.sched_getaffinity(0))
    opened: dict[str, Maker] = {}

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if core is not None:
            os.sched_setaffinity(0, {cores[core % len(cores)]})
        files, out = command["files"], Path(command["out"])
        if files not in opened:
            opened[files] = open_maker(name, Path(files))
        maker = opened[files]
        cpu, start = cpu_seconds(), time.perf_counter()
        maker.make(out)
        seconds = time.perf_counter() - start
        used = cpu_seconds() - cpu
        about = {"images": maker.images, "seconds": seconds, "cpu_seconds": used}
        return {**about, "setting": maker.variant}

    try:
        yield answer
    finally:
        close_sandbox()


def open_maker(name: Name, files: Path) -> Maker:
    """Import a contender and list the images in a folder, before its clock starts.

    Raises:
        ImportError: A package of it is not installed.
    """
    match name:
        case "tessera" | "tessera_near" | "tessera_444" | "tessera_shards":
            return _ours(name, files)
        case "img2dataset":
            return _img2dataset(_paths(files))
        case "webdataset":
            return _per_image(_paths(files), _by_pillow, "Pillow")
        case "copy":
            return _per_image(_paths(files), _strictly, "simplejpeg")
        case "decode_only":
            return _decode_only(_paths(files))


def _ours(name: Name, files: Path) -> Maker:
    sources = parse_sources([str(files)], (), ())
    chunks = list_chunks(sources, chunk_inputs=_CHUNK_INPUTS)
    config = ShardConfig(
        quality=QUALITY,
        subsampling="444" if name == "tessera_444" else "420",
        near_duplicates=name != "tessera",
    )
    if name == "tessera_shards":
        make = _shards_maker(chunks, sources, config)
    else:
        make = _parts_maker(chunks, config)
    return Maker(make, sum(chunk.num_inputs or 0 for chunk in chunks))


def _parts_maker(chunks: Sequence[Chunk], config: ShardConfig) -> Callable[[Path], Any]:
    def make(out: Path) -> None:
        for chunk in chunks:
            make_part(PartSpec(out, chunk, config))

    return make


def _shards_maker(
    chunks: Sequence[Chunk], sources: SourceList, config: ShardConfig
) -> Callable[[Path], Any]:
    from pipeline.ingest.folder import ShardRequest
    from pipeline.ingest.stage import shard_chunks
    from pipeline.shards.third_party.indexing import run_here

    def make(out: Path) -> None:
        shard_chunks(chunks, ShardRequest(out, sources, config), run_here, lambda progress: None)

    return make


def _img2dataset(paths: Sequence[Path]) -> Maker:
    """Use img2dataset's own resizer and writer, or the calls of OpenCV that they make."""
    import cv2

    cv2.setNumThreads(1)
    try:
        from img2dataset.resizer import Resizer
        from img2dataset.writer import WebDatasetSampleWriter
    except ImportError:
        return _per_image(paths, _by_opencv, "OpenCV stand-in")
    import pyarrow as pa

    sizes = ("width", "height", "original_width", "original_height")
    schema = pa.schema([("key", pa.string()), *((name, pa.int32()) for name in sizes)])
    resizer = Resizer(STORED, "keep_ratio", True, encode_quality=QUALITY)

    def make(out: Path) -> None:
        writer = WebDatasetSampleWriter(0, str(out), False, 5, schema, "jpg")
        for path in paths:
            image, *found, problem = resizer(io.BytesIO(path.read_bytes()))
            if problem is not None:
                raise ValueError(problem)
            about = {"key": path.stem, **dict(zip(sizes, found, strict=True))}
            writer.write(image, path.stem, None, about)
        writer.close()

    return Maker(make, len(paths), "img2dataset")


def _per_image(paths: Sequence[Path], convert: Callable[[bytes], bytes], variant: str) -> Maker:
    """Write shards by webdataset, image by image."""
    import webdataset

    def make(out: Path) -> None:
        with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=1000, verbose=0) as writer:
            for path in paths:
                writer.write({"__key__": path.stem, "jpg": convert(path.read_bytes())})

    return Maker(make, len(paths), variant)


def _decode_only(paths: Sequence[Path]) -> Maker:
    images = [path.read_bytes() for path in paths]

    def make(out: Path) -> None:
        for image in images:
            _strictly(image)

    return Maker(make, len(paths), "simplejpeg")


def _strictly(image: bytes) -> bytes:
    simplejpeg.decode_jpeg(image, strict=True)
    return image


def _by_opencv(image: bytes) -> bytes:
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("Image decoding error")
    height, width = pixels.shape[:2]
    scale = STORED / min(height, width)
    if scale < 1:
        size = round(width * scale), round(height * scale)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded: bytes = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return encoded


def _by_pillow(image: bytes) -> bytes:
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    scale = STORED / min(picture.size)
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())
