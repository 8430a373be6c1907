"""Who takes part in the loader's contests: ours, its peers, and the limits.

Each imports its libraries when it runs, so that its process holds no other contender's.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.bench.work import (
    CELL_PX,
    CELLS,
    CROP_PX,
    GRID,
    MIN_SCALE,
    TILE_PX,
    WHOLE_PX,
    LoaderWork,
    View,
    check_batch,
    graph_options,
    open_ours,
)
from pipeline.bench.worker import Answer, Batches, Variants, choose, run

_SHUFFLE = 500  # Samples in webdataset's buffer.
_CHUNK_BYTES = 16 * 2**20  # Of the formats that LitData and Streaming convert to.
_EPOCH = 1_000_000
_AHEAD = 2  # Batches in flight for each thread of a limit.


@contextmanager
def contend(name: str, **work: Any) -> Iterator[Answer]:
    """Be a contender, as a worker: choose a setting, then answer with a stretch per command.

    Args:
        name: Name of the contender.
        work: Fields of `LoaderWork`, paths as strings.

    Raises:
        ImportError: Its package is not installed.
    """
    paths = {key: Path(work[key]) for key in ("shards", "scratch")}
    given = LoaderWork(**{**work, **paths})
    contender = next(one for one in CONTENDERS if one.name == name)
    variants = contender.variants(given)
    batches: Batches | None = None

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal batches
        if batches is not None:
            return asdict(run(batches, **command))
        setting, batches = choose(variants, command["seconds"])
        first = next(batches)
        mean = None if contender.role == "limit" else check_batch(np.asarray(first), given)
        return {"setting": setting, "mean": mean}

    try:
        yield answer
    finally:
        if batches is not None:
            batches.close()


class TorchvisionCut:
    """Turns the encoded images of a batch into views, on the calling thread."""

    # Measured on one core, photographs of 500 x 375: decoding alone 1,060 images/s; resizing the
    # sliced crop 700, since torch then resizes channels first; making the crop contiguous channels
    # last before 830.

    def __init__(self, view: View, decode: Callable[[bytes], Tensor] | None = None) -> None:
        self._view, self._decode = view, decode or decode_torchvision

    def __call__(self, encoded: Sequence[bytes]) -> Tensor:
        """Decode and cut.

        Returns:
            uint8 (B, 9, 64, 64, 3) or (B, 224, 224, 3).
        """
        images = [self._decode(data) for data in encoded]
        if self._view == "whole":
            squares = [_resize(_central_square(image), WHOLE_PX) for image in images]
            return torch.stack(squares).permute(0, 2, 3, 1)
        rng = np.random.default_rng()
        crops = rng.random((len(images), 3))
        jitter = rng.integers(CELL_PX - TILE_PX + 1, size=(len(images), GRID * GRID, 2))
        out = torch.empty((len(images), GRID * GRID, TILE_PX, TILE_PX, 3), dtype=torch.uint8)
        views = out.numpy()
        for image, crop, places, tiles in zip(images, crops, CELLS + jitter, views, strict=True):
            resized = _resize(_random_square(image, *crop.tolist()), CROP_PX)
            pixels = resized.permute(1, 2, 0).numpy()
            for tile, (top, left) in zip(tiles, places.tolist(), strict=True):
                tile[:] = pixels[top : top + TILE_PX, left : left + TILE_PX]
        return out


def decode_torchvision(data: bytes) -> Tensor:
    """Decode with torchvision, uint8 (3, H, W), stored channels last."""
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: Tensor = decode_jpeg(buffer, ImageReadMode.RGB)
    return image


def decode_simplejpeg(data: bytes) -> Tensor:
    """Decode with simplejpeg, to the same pixels in a tenth less time; as `decode_torchvision`."""
    import simplejpeg

    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)


def _random_square(image: Tensor, scale: float, top: float, left: float) -> Tensor:
    height, width = image.shape[1:]
    side = max(1, round((MIN_SCALE + (1 - MIN_SCALE) * scale) * min(height, width)))
    y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
    return image[:, y : y + side, x : x + side]


def _central_square(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return image[:, y : y + side, x : x + side]


def _resize(square: Tensor, px: int) -> Tensor:
    # Contiguous channels last: torch's fast path for uint8, which a slice does not take.
    ready = square[None].contiguous(memory_format=torch.channels_last)
    return interpolate(ready, size=(px, px), mode="bilinear", antialias=True)[0]


def _by_threads(make: Callable[[LoaderWork, int], Batches], work: LoaderWork) -> Variants:
    """Offer a thread for each core, and one more, which fills in where a batch ends unevenly."""
    return {f"{n} threads": partial(make, work, n) for n in (work.cores, work.cores + 1)}


def _by_workers(make: Callable[[LoaderWork, int], Batches], work: LoaderWork) -> Variants:
    """Offer a worker for each core, and one fewer, which leaves a core to the consumer."""
    counts = sorted({work.cores, max(1, work.cores - 1)}, reverse=True)
    return {f"{n} workers": partial(make, work, n) for n in counts}


# torch's DataLoader over shards (webdataset) and over loose files.


def tessera_variants(work: LoaderWork) -> Variants:
    """Offer numbers of threads."""
    import_module("pipeline.loading.loader")
    return _by_threads(open_ours, work)


def webdataset_variants(work: LoaderWork) -> Variants:
    """Offer numbers of workers.

    Raises:
        ImportError: webdataset is not installed; likewise below.
    """
    import_module("webdataset")
    return _by_workers(_open_webdataset, work)


def _open_webdataset(work: LoaderWork, workers: int) -> Batches:
    import webdataset

    # Tars are resampled, so that a small set never starves a worker; labels are skipped; a worker
    # cuts whole batches.
    dataset = (
        webdataset.WebDataset(
            work.tars(),
            resampled=True,
            shardshuffle=False,
            nodesplitter=None,
            select_files=lambda name: name.endswith(".jpg"),
        )
        .shuffle(_SHUFFLE)
        .to_tuple("jpg")
        .map(lambda row: row[0])
        .batched(work.batch, partial=False, collation_fn=TorchvisionCut(work.view))
    )
    yield from webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)


class _Files(Dataset[bytes]):
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> bytes:
        return self._paths[row].read_bytes()


class _Endless(Sampler[int]):
    """Permutations of `num` rows, one after the other."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from random.sample(range(self._num), self._num)


def _open_files(work: LoaderWork, workers: int) -> Batches:
    files = _Files(_loose(work))
    cut = TorchvisionCut(work.view)
    yield from DataLoader(
        files, work.batch, sampler=_Endless(len(files)), num_workers=workers, collate_fn=cut
    )


def _loose(work: LoaderWork) -> list[Path]:
    return sorted((work.scratch / "files").iterdir())


# Peers that convert the images to a format of their own first.


class _CutColumn:
    def __init__(self, work: LoaderWork, column: Any) -> None:
        self._cut, self._column = TorchvisionCut(work.view), column

    def __call__(self, rows: Sequence[Any]) -> Tensor:
        return self._cut([row[self._column] for row in rows])


def litdata_variants(work: LoaderWork) -> Variants:
    """Convert once; offer numbers of workers."""
    import litdata

    out = work.scratch / "litdata"
    if not out.exists():
        litdata.optimize(read_file, _loose(work), str(out), chunk_bytes=_CHUNK_BYTES, num_workers=1)
    return _by_workers(_open_litdata, work)


def read_file(path: Path) -> bytes:
    """Return what LitData stores of one file; public and at the top, since it is pickled."""
    return path.read_bytes()


def _open_litdata(work: LoaderWork, workers: int) -> Batches:
    from litdata import ParallelStreamingDataset, StreamingDataLoader, StreamingDataset

    images = StreamingDataset(str(work.scratch / "litdata"), shuffle=True)
    yield from StreamingDataLoader(
        ParallelStreamingDataset([images], length=float("inf")),  # Cycles without an epoch's end.
        batch_size=work.batch,
        num_workers=workers,
        collate_fn=_CutColumn(work, 0),
    )


def streaming_variants(work: LoaderWork) -> Variants:
    """Convert once; offer numbers of workers."""
    import streaming

    out = work.scratch / "streaming"
    if not out.exists():
        with streaming.MDSWriter(
            out=str(out), columns={"jpg": "bytes"}, size_limit=_CHUNK_BYTES
        ) as writer:
            for path in _loose(work):
                writer.write({"jpg": path.read_bytes()})
    return _by_workers(_open_streaming, work)


def _open_streaming(work: LoaderWork, workers: int) -> Batches:
    from streaming import StreamingDataset

    dataset = StreamingDataset(
        local=str(work.scratch / "streaming"),
        batch_size=work.batch,
        shuffle=True,
        epoch_size=_EPOCH,  # The end of an epoch drains the workers; a small set would have many.
    )
    loader = DataLoader(
        dataset,
        work.batch,
        num_workers=workers,
        collate_fn=_CutColumn(work, "jpg"),
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        yield from loader


# DALI with its own reader, crop and resize: no Python between the tar and the tiles.


def _open_dali(work: LoaderWork, threads: int) -> Batches:
    from pipeline.dali.peer import own_reader_tiles, own_reader_whole

    options = graph_options(work.batch, threads)
    if work.view == "whole":
        return own_reader_whole(work.tars(), options, px=WHOLE_PX)
    cells = [(int(top), int(left)) for top, left in CELLS]
    return own_reader_tiles(work.tars(), options, cells=cells, tile_px=TILE_PX)


# SPDL: tars parsed in C++, batches cut by a pool of threads in one process. SPDL's own decoder is
# FFmpeg: its decode, crop and scale gave 400 images/s on a core of an EPYC, with pixels 2.6 of 255
# off libjpeg's on average; torchvision's steps in the same threads gave 800. SPDL's guide has users
# pipe any function that releases the GIL, so it gets the fastest.


def spdl_variants(work: LoaderWork) -> Variants:
    """Offer two decoders, with a thread for each core."""
    import_module("spdl.io")
    decoders = {"torchvision": decode_torchvision, "simplejpeg": decode_simplejpeg}
    return {
        f"{work.cores} threads, {name}": partial(
            _open_spdl, work, TorchvisionCut(work.view, decode)
        )
        for name, decode in decoders.items()
    }


def _open_spdl(work: LoaderWork, cut: TorchvisionCut) -> Batches:
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)  # The pool is the parallelism.
    pipeline = (
        PipelineBuilder()
        .add_source(_encoded(work))
        .pipe(cut, concurrency=work.cores)
        .add_sink(2)
        .build(num_threads=work.cores)
    )
    with pipeline.auto_stop():
        yield from pipeline


def _encoded(work: LoaderWork) -> Iterator[list[memoryview]]:
    """Yield batches of encoded images for ever, shards and a buffer shuffled.

    Whole batches: every element that passes through a stage costs tens of microseconds.
    """
    from spdl.io import iter_tarfile

    tars, ready = work.tars(), []
    while True:
        for path in random.sample(tars, len(tars)):
            members = iter_tarfile(Path(path).read_bytes())
            images = [image for name, image in members if name.endswith(".jpg")]
            ready += random.sample(images, len(images))
            while len(ready) >= work.batch:
                yield ready[: work.batch]
                ready = ready[work.batch :]


# Limits of any loader that decodes whole images: decoding alone, and reading alone.


def decode_variants(work: LoaderWork) -> Variants:
    """Offer every binding of libjpeg-turbo; all decode the whole image."""
    import simplejpeg

    return {
        "torchvision": partial(_in_threads, work, _decode_payload),
        "DALI": partial(_decode_dali, work),
        "simplejpeg": partial(_in_threads, work, simplejpeg.decode_jpeg),
    }


def read_variants(work: LoaderWork) -> Variants:
    """Touch every byte of the encoded images, from the disk or the page cache."""
    return {f"{work.cores} threads": partial(_in_threads, work, np.max)}


def _decode_payload(payload: NDArray[np.uint8]) -> Tensor:
    image: Tensor = decode_jpeg(torch.from_numpy(payload.copy()), ImageReadMode.RGB)
    return image


def _decode_dali(work: LoaderWork) -> Batches:
    from pipeline.dali.peer import decode_only

    for num in decode_only(work.tars(), graph_options(work.batch, work.cores)):
        yield range(num)


def _in_threads(work: LoaderWork, touch: Callable[[NDArray[np.uint8]], Any]) -> Batches:
    """Apply `touch` to batches of encoded images on every core; yields the batch's positions."""
    from pipeline.shards.store import Store

    torch.set_num_threads(1)
    store = Store(work.shards)
    payloads = store.read(np.arange(store.manifest.num_samples)).payloads

    def touch_all(rows: NDArray[np.int64]) -> range:
        for row in rows.tolist():
            touch(payloads[row])
        return range(len(rows))

    def rows() -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(0)
        while True:
            yield rng.integers(len(payloads), size=work.batch)

    pool, pending = ThreadPoolExecutor(work.cores), list[Future[range]]()
    try:
        for batch in rows():
            pending.append(pool.submit(touch_all, batch))
            if len(pending) == _AHEAD * work.cores:
                yield pending.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table."""

    name: str
    title: str
    role: Literal["ours", "peer", "limit"]
    variants: Callable[[LoaderWork], Variants]
    """Imports its package, and offers settings."""


CONTENDERS = (
    Contender("tessera", "Tessera", "ours", tessera_variants),
    Contender("webdataset", "webdataset + torchvision", "peer", webdataset_variants),
    Contender("files", "loose files + torchvision", "peer", partial(_by_workers, _open_files)),
    Contender("dali", "DALI, its own reader", "peer", partial(_by_threads, _open_dali)),
    Contender("spdl", "SPDL + torch", "peer", spdl_variants),
    Contender("litdata", "LitData + torchvision", "peer", litdata_variants),
    Contender("streaming", "Streaming + torchvision", "peer", streaming_variants),
    Contender("decode_only", "decode only", "limit", decode_variants),
    Contender("read_only", "read only", "limit", read_variants),
)


def quick_names() -> tuple[str, ...]:
    """Name ours, the two strongest peers that are installed, and one limit."""
    chosen = ("tessera", "webdataset", "spdl", "decode_only")
    # SPDL is named even where it is absent: its row says so.
    return chosen if find_spec("spdl") else (*chosen, "files")
