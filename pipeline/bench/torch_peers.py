"""torch's DataLoader over the shards (webdataset) and over loose files."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
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
    Batches,
    LoaderWork,
    Variants,
    View,
)

# Measured on one core, photographs of 500 x 375: decode 1,060 images/s; with a crop that is resized
# as it is sliced 700, since torch then resizes and returns channels first; with the crop made
# contiguous channels last before 830.


Ints = NDArray[np.int64]


class TorchvisionCut:
    """Encoded images of a batch into its views, on the calling thread."""

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


_SHUFFLE = 500  # Samples in webdataset's buffer.


def webdataset_variants(work: LoaderWork) -> Variants:
    """Offer the numbers of workers worth trying."""
    return {f"{n} workers": partial(_open_webdataset, work, n) for n in worker_counts(work)}


def files_variants(work: LoaderWork) -> Variants:
    """Offer the numbers of workers worth trying."""
    return {f"{n} workers": partial(_open_files, work, n) for n in worker_counts(work)}


def worker_counts(work: LoaderWork) -> list[int]:
    """Return one worker for each core, and one fewer, which leaves a core to the consumer."""
    return sorted({work.cores, max(1, work.cores - 1)}, reverse=True)


def _open_webdataset(work: LoaderWork, workers: int) -> Batches:
    # Tars are drawn again and again, so that a small set never starves a worker; the labels beside
    # the images are passed over; a worker cuts whole batches.
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


class Endless(Sampler[int]):
    """Permutations of `num` rows, one after the other."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from random.sample(range(self._num), self._num)


def _open_files(work: LoaderWork, workers: int) -> Batches:
    files = _Files(sorted((work.scratch / "files").iterdir()))
    cut = TorchvisionCut(work.view)
    yield from DataLoader(
        files, work.batch, sampler=Endless(len(files)), num_workers=workers, collate_fn=cut
    )
