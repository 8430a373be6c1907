"""The process of one contender: told by lines of JSON what to do, answers with lines of JSON."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import assert_never

from pipeline.bench.measure import run
from pipeline.bench.process import serve
from pipeline.bench.work import Batches
from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import whole_batches
from pipeline.pretext.normalize import normalize
from training.bench.peers import endless_loop, keep_features
from training.bench.work import POOLINGS, ExtractionWork
from training.transfer.frozen.features import extract_features, layer_rows
from training.transfer.job import Labelled

Name = Literal["tessera", "loader", "forward", "torchvision"]

_ENDLESS = 2**24
"""Images of an evaluation that no bench sees the end of."""
_KEPT = 4
"""Batches in the memory of the forward pass alone."""


def main() -> None:
    """Serve one contender until standard input ends."""
    name: Any = sys.argv[1]
    work = ExtractionWork(**json.loads(sys.argv[2]))
    serve(lambda commands: answers(name, work, commands))


def answers(name: Name, work: ExtractionWork, commands: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Answer each command; the first answer says that the imports are done.

    {"warm", "seconds"} asks for a stretch of batches, {"keep"} for the features of all images in a
    folder, which only the torchvision loop makes.
    """
    yield {}
    batches: Batches | None = None
    files = Path(work.folder) / "files"
    try:
        for line in commands:
            command = json.loads(line)
            if "keep" in command:
                keep_features(work, files, Path(command["keep"]))
                yield {}
                continue
            batches = batches or open_batches(name, work)
            yield asdict(run(batches, **command))
    except Exception as error:  # Whatever it is, the parent says it in one line.
        first_line = (str(error).strip() or "no message").splitlines()[0]
        yield {"failure": f"{type(error).__name__}: {first_line}"}
    finally:
        if batches is not None:
            batches.close()


def open_batches(name: Name, work: ExtractionWork) -> Batches:
    """Yield batches of what a contender makes of the training images, for ever."""
    torch.set_num_threads(work.cores)
    match name:
        case "tessera":
            return _extraction(work)
        case "loader":
            return _views(work)
        case "forward":
            return _forward(work)
        case "torchvision":
            return (rows for rows in endless_loop(work, Path(work.folder) / "files"))
        case _:
            assert_never(name)


def _extraction(work: ExtractionWork) -> Batches:
    setting = work.setting()
    images = _for_ever(setting.task.train)
    for rows in extract_features(work.net(), images, setting, POOLINGS, lambda done: None):
        yield next(iter(rows.values()))


def _views(work: ExtractionWork) -> Batches:
    setting = work.setting()
    images = _for_ever(setting.task.train)
    options = GraphOptions(
        max_batch=setting.batch, num_threads=setting.threads, device_id=None, prefetch=2
    )
    for batch in whole_batches(images.store, images.sample_ids, options, px=setting.view_px):
        yield batch.views


def _forward(work: ExtractionWork) -> Batches:
    kept = [normalize(views) for views in islice(_views(work), _KEPT)]
    net = work.net()
    for images in cycle(kept):
        yield next(iter(layer_rows(net, images, POOLINGS, "fp32").values()))


def _for_ever(images: Labelled) -> Labelled:
    ids = np.resize(images.sample_ids, _ENDLESS)
    return Labelled(images.store, ids, np.zeros_like(ids))


if __name__ == "__main__":
    main()
