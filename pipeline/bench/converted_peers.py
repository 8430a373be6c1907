"""Peers that convert the images to a format of their own first: LitData and MosaicML Streaming."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.bench.torch_peers import TorchvisionCut, worker_counts
from pipeline.bench.work import Batches, LoaderWork, Variants

_CHUNK_BYTES = 16 * 2**20
_EPOCH = 1_000_000


def litdata_variants(work: LoaderWork) -> Variants:
    """Convert once; offer the numbers of workers worth trying."""
    import litdata

    folder = work.scratch / "litdata"
    if not folder.exists():
        litdata.optimize(
            read_file,
            sorted((work.scratch / "files").iterdir()),
            str(folder),
            chunk_bytes=_CHUNK_BYTES,
            num_workers=1,
        )
    return {f"{n} workers": partial(_open_litdata, work, n) for n in worker_counts(work)}


def streaming_variants(work: LoaderWork) -> Variants:
    """Convert once; offer the numbers of workers worth trying."""
    import streaming

    folder = work.scratch / "streaming"
    if not folder.exists():
        with streaming.MDSWriter(
            out=str(folder), columns={"jpg": "bytes"}, size_limit=_CHUNK_BYTES
        ) as writer:
            for path in sorted((work.scratch / "files").iterdir()):
                writer.write({"jpg": path.read_bytes()})
    return {f"{n} workers": partial(_open_streaming, work, n) for n in worker_counts(work)}


def _open_litdata(work: LoaderWork, workers: int) -> Batches:
    from litdata import ParallelStreamingDataset, StreamingDataLoader, StreamingDataset

    images = StreamingDataset(str(work.scratch / "litdata"), shuffle=True)
    yield from StreamingDataLoader(
        ParallelStreamingDataset([images], length=float("inf")),  # Cycles without an epoch's end.
        batch_size=work.batch,
        num_workers=workers,
        collate_fn=_CutColumn(work, 0),
    )


def read_file(path: Path) -> bytes:
    """Return what LitData stores of one file; a function of a module, since it is pickled."""
    return path.read_bytes()


class _CutColumn:
    def __init__(self, work: LoaderWork, column: Any) -> None:
        self._cut, self._column = TorchvisionCut(work.view), column

    def __call__(self, rows: Sequence[Any]) -> Tensor:
        return self._cut([row[self._column] for row in rows])


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
