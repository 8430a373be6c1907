"""torch's DataLoader over the shards (webdataset) and over loose files."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import webdataset
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.bench.torchvision_views import TorchvisionCut
from pipeline.bench.work import Batches, Variants, Work

_SHUFFLE = 500  # Samples in webdataset's buffer.


def webdataset_variants(work: Work) -> Variants:
    """Offer the numbers of workers worth trying."""
    return {f"{n} workers": partial(_open_webdataset, work, n) for n in worker_counts(work)}


def files_variants(work: Work) -> Variants:
    """Offer the numbers of workers worth trying."""
    return {f"{n} workers": partial(_open_files, work, n) for n in worker_counts(work)}


def worker_counts(work: Work) -> list[int]:
    """Return one worker for each core, and one fewer, which leaves a core to the consumer."""
    return sorted({work.cores, max(1, work.cores - 1)}, reverse=True)


def _open_webdataset(work: Work, workers: int) -> Batches:
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


def _open_files(work: Work, workers: int) -> Batches:
    files = _Files(sorted((work.scratch / "files").iterdir()))
    cut = TorchvisionCut(work.view)
    yield from DataLoader(
        files, work.batch, sampler=Endless(len(files)), num_workers=workers, collate_fn=cut
    )
