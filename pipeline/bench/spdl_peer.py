"""SPDL: tars parsed in C++, batches cut by a pool of threads in one process."""

# SPDL's own decoder is FFmpeg. Here its decode, crop and scale gave 400 images/s on a core, with
# pixels 2.6 of 255 off libjpeg's on average, and torchvision's in the same threads 820. SPDL's
# guide has users pipe any function that frees the interpreter lock: it runs with the faster one.

import random
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from pipeline.bench.torchvision_views import TorchvisionCut
from pipeline.bench.work import Batches, Variants, Work


def variants(work: Work) -> Variants:
    """Offer one thread for each core, and one more that fills in while others wait.

    Raises:
        ImportError: SPDL is not installed.
    """
    import_module("spdl.io")
    return {f"{n} threads": partial(_open, work, n) for n in (work.cores, work.cores + 1)}


def _open(work: Work, threads: int) -> Batches:
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)  # The pool is the parallelism.
    pipeline = (
        PipelineBuilder()
        .add_source(_encoded(work))
        .pipe(TorchvisionCut(work.view), concurrency=threads)
        .add_sink(2)
        .build(num_threads=threads)
    )
    with pipeline.auto_stop():
        yield from pipeline


def _encoded(work: Work) -> Iterator[list[memoryview]]:
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
