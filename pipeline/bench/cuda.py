"""The GPU's side: tiles against decode only, a peer feeding the GPU, idle share, one bad image."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models import resnet50

from pipeline.bench.measure import run
from pipeline.bench.ours import graph_options, make_loader
from pipeline.bench.torch_peers import webdataset_variants
from pipeline.bench.work import GRID, Batches, LoaderWork
from pipeline.dali.peer import decode_batch, decode_only
from pipeline.shards.store import Store

_LOADS = (0.0, 0.3, 0.65, 0.9)  # Shares of images that go to the hardware decoder.
_WARM, _SECONDS, _STEPS = 2.0, 8.0, 50
_TILES = GRID * GRID
_NOT_MEASURED = "not measured: no CUDA device"

Measure = Callable[[LoaderWork], Any]


def cuda(work: LoaderWork) -> dict[str, Any]:
    """Measure on the first GPU.

    Returns:
        A row for each measure; without a GPU, or where one fails, a string that says so.
    """
    measures: dict[str, Measure] = {
        "tiles_per_s": lambda w: _TILES * _rate(_views(w)),
        "decode_only_images_per_s": _decode_only,
        "webdataset_tiles_per_s": lambda w: _TILES * _rate(_webdataset(w)),
        "gpu_idle_share_resnet50": _idle_share,
        "after_a_bad_image": _after_a_bad_image,
        "difference_to_cpu": _difference_to_cpu,
    }
    if not torch.cuda.is_available():
        return dict.fromkeys(measures, _NOT_MEASURED)
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        try:
            found[name] = measure(work)
        except RuntimeError as error:
            found[name] = f"failed: {str(error).splitlines()[0]}"
    return found


def _rate(batches: Batches) -> float:
    """Return images per second of batches that are ready on the GPU."""
    try:
        return run(_synchronised(batches), warm=_WARM, seconds=_SECONDS).images_per_s
    finally:
        batches.close()


def _synchronised(batches: Iterator[Any]) -> Batches:
    for batch in batches:
        torch.cuda.synchronize()
        yield batch


def _views(work: LoaderWork, device_id: int | None = 0) -> Batches:
    options = graph_options(work.batch, work.cores, device_id)
    for batch in make_loader(work.shards, work.batch).batches(options):
        yield batch.views


def _decode_only(work: LoaderWork) -> dict[str, float]:
    """Try shares of the hardware decoder; by share, images per second."""
    options = graph_options(work.batch, work.cores, 0)
    rates = {}
    for load in _LOADS:
        sizes = decode_only(work.tars(), options, hw_decoder_load=load)
        rates[f"hw_decoder_load {load}"] = _rate(range(num) for num in sizes)
    return rates


def _webdataset(work: LoaderWork) -> Batches:
    make = next(iter(webdataset_variants(work).values()))
    for batch in make():
        yield batch.pin_memory().to("cuda", non_blocking=True)


def _idle_share(work: LoaderWork) -> float:
    """Compare training on the loader's tiles with training on one batch that never changes."""
    model = resnet50().to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(views: Tensor) -> None:
        pixels = views.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batches = _views(work)
    fixed = next(batches).clone()
    ideal = _seconds(lambda: step(fixed))
    real = _seconds(lambda: step(next(batches)))
    batches.close()
    return max(0.0, 1 - ideal / real)


def _seconds(step: Callable[[], None]) -> float:
    for _ in range(_STEPS // 5):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_STEPS):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _after_a_bad_image(work: LoaderWork) -> str:
    """Decode a batch with a cut image on the GPU, then whole ones."""
    payloads = Store(work.shards).read(np.arange(work.batch)).payloads
    cut = [payloads[0][: payloads[0].size // 2], *payloads[1:]]
    outcomes = decode_batch([payloads, cut, payloads], graph_options(work.batch, 1, 0))
    return "whole batch, bad batch, whole batch: " + ", ".join(outcomes)


def _difference_to_cpu(work: LoaderWork) -> dict[str, float]:
    """Compare the same tiles, cut on the GPU and on the CPU; of 255."""
    pairs = zip(islice(_views(work), 4), islice(_views(work, None), 4), strict=True)
    gaps = [(a.cpu().int() - b.int()).abs().float() for a, b in pairs]
    return {
        "mean": float(torch.stack([gap.mean() for gap in gaps]).mean()),
        "max": float(torch.stack([gap.max() for gap in gaps]).max()),
    }
