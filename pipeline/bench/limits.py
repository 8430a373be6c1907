"""What no loader can beat that decodes whole images: the decode alone, and the read alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.bench.ours import graph_options
from pipeline.bench.work import Batches, LoaderWork, Variants
from pipeline.dali.peer import decode_only
from pipeline.shards.store import Store

_AHEAD = 2  # Batches in flight for each thread.

Touch = Callable[[NDArray[np.uint8]], Any]


def decode_variants(work: LoaderWork) -> Variants:
    """Offer every binding of libjpeg-turbo that is installed; all decode the whole image."""
    found: Variants = {
        "torchvision": partial(_in_threads, work, _decode_torchvision),
        "DALI": partial(_decode_dali, work),
    }
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = partial(_in_threads, work, simplejpeg.decode_jpeg)
    return found


def read_variants(work: LoaderWork) -> Variants:
    """Touch every byte of the encoded images, from the disk or the page cache."""
    return {f"{work.cores} threads": partial(_in_threads, work, np.max)}


def _decode_torchvision(payload: NDArray[np.uint8]) -> torch.Tensor:
    image: torch.Tensor = decode_jpeg(torch.from_numpy(payload.copy()), ImageReadMode.RGB)
    return image


def _decode_dali(work: LoaderWork) -> Batches:
    for num in decode_only(work.tars(), graph_options(work.batch, work.cores)):
        yield range(num)


def _in_threads(work: LoaderWork, touch: Touch) -> Batches:
    """Apply `touch` to batches of encoded images on every core; yields the batch's positions."""
    torch.set_num_threads(1)
    store = Store(work.shards)
    payloads = store.read(np.arange(store.manifest.num_samples)).payloads

    def run(rows: NDArray[np.int64]) -> range:
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
            pending.append(pool.submit(run, batch))
            if len(pending) == _AHEAD * work.cores:
                yield pending.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)
