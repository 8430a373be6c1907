"""SPDL: tars parsed in C++, batches cut by a pool of threads in one process."""

# SPDL's own decoder is FFmpeg: its decode, crop and scale gave 400 images/s on a core of an EPYC,
# with pixels 2.6 of 255 off libjpeg's on average; torchvision's steps in the same threads gave 800.
# SPDL's guide has users pipe any function that frees the interpreter lock, so it gets the fastest.

import random
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from pipeline.bench.torch_peers import TorchvisionCut, decode_simplejpeg, decode_torchvision
from pipeline.bench.work import Batches, LoaderWork, Variants


def variants(work: LoaderWork) -> Variants:
    """Offer the decoders that are installed, with a thread for each core.

    Raises:
        ImportError: SPDL is not installed.
    """
    import_module("spdl.io")
    decoders = {"torchvision": decode_torchvision}
    if find_spec("simplejpeg"):
        decoders["simplejpeg"] = decode_simplejpeg
    return {
        f"{work.cores} threads, {name}": partial(_open, work, TorchvisionCut(work.view, decode))
        for name, decode in decoders.items()
    }


def _open(work: LoaderWork, cut: TorchvisionCut) -> Batches:
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
