"""What the supervised trunk of a transfer has seen of the images that it is tested on."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data import open_store
from pipeline.pretext.multitask import tasks_of
from pipeline.pretext.supervised import SupervisedConfig, held_out
from training.run import read_run
from training.transfer.job import Task
from training.transfer.overlap import contents_of, count_shared


def supervised_overlap(task: Task, run: Path | None) -> Task:
    """Count the images of the task whose labels a supervised run was trained on.

    They are added to the overlap as "supervised/train" and "supervised/test". Of a file of weights
    without a run, that is not known, and a note says so.

    Args:
        task: What is learned and tested.
        run: Folder of the run, or its file of weights.
    """
    folder = run if run is not None and run.is_dir() else run.parent if run else None
    if folder is None or not (folder / "config.yaml").exists():
        note = "what the supervised trunk was trained on is not known: overlap is not counted"
        return replace(task, notes=(*task.notes, note))
    config = read_run(folder)
    tasks = tasks_of(config.pretext) if config.pretext else ()
    shares = [one.holdout for one in tasks if isinstance(one, SupervisedConfig)]
    seen = []
    for one in config.data.sets:
        store = open_store(one.manifest, config.data.cache)
        taught = store.labels() >= 0
        for share in shares:
            taught &= ~held_out(store.keys(), share)
        seen.append(contents_of(store, np.flatnonzero(taught)))
    overlap = dict(task.overlap)
    for side, images in (("train", task.train), ("test", task.test)):
        theirs = contents_of(images.store, images.sample_ids)
        overlap[f"supervised/{side}"] = sum(count_shared(one, theirs) for one in seen)
    return replace(task, overlap=overlap)
