"""The images of a transfer: found, split, and counted for overlap."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.remote.cache import CacheConfig
from pipeline.shards.manifest import LEDGER_NAME
from pipeline.shards.store import Store
from training.transfer.images.pool import (
    Pool,
    contents_of,
    count_all,
    labelled,
    limit_pool,
    open_set,
    pair_sets,
    split_set,
)
from training.transfer.images.prepare import prepare
from training.transfer.images.split import SplitRows, SplitRule
from training.transfer.job import Labelled, Progress, Task

_MAX_NAMED = 10  # names in a note


def packing_notes(place: str) -> list[str]:
    """Count what packing left out, or stored anew, by the ledger beside the shards."""
    try:
        lines = (Path(place) / LEDGER_NAME).read_text(encoding="utf-8").splitlines()
    except OSError:  # A URL, or shards that others made.
        return []
    words = {"quarantined": "can not be used", "encoded": "are stored anew as PNG"}
    every = (json.loads(line) for line in lines)
    rows = [row for row in every if row["verdict"] in words]  # A duplicate has no reason.
    kinds = Counter((row["verdict"], row["reason"]) for row in rows)
    first = {(row["verdict"], row["reason"]): row["path"] for row in reversed(rows)}
    return [
        f"{count} images {words[verdict]}: {reason} ({first[verdict, reason]})"
        for (verdict, reason), count in sorted(kinds.items())
    ]


def count_notes(pool: Pool, sides: SplitRows) -> list[str]:
    """Say why images of the shards are on no side; each is counted once."""
    is_left = np.ones(len(pool.keys), np.bool_)
    is_left[sides.train] = is_left[sides.test] = False
    counts = {
        "have no label": int((~pool.is_labelled).sum()),
        "are copies of another": int((pool.is_copy & pool.is_labelled).sum()),
    }
    is_left &= pool.usable
    if pool.labels is not None:
        used = np.unique(pool.labels[sides.train])
        of_others = is_left & ~np.isin(pool.labels, used)
        names = [pool.classes[label] for label in np.unique(pool.labels[of_others])]
        what = f"are of classes with too few images on a side: {_shorten(names)}"
        counts[what] = int(of_others.sum())
        is_left &= ~of_others
    counts["are more than the limits allow"] = int(is_left.sum())
    return [f"{count} images {what}" for what, count in counts.items() if count]


def class_notes(pool: Pool, sides: SplitRows) -> list[str]:
    """Name classes that no image shows."""
    if pool.labels is not None:
        there = np.unique(pool.targets[pool.is_labelled])
        empty = [name for number, name in enumerate(pool.classes) if number not in there]
        return [f"classes without an image: {_shorten(empty)}"] if empty else []
    notes = []
    for side, rows in (("train", sides.train), ("test", sides.test)):
        shown = (pool.targets[rows] == 1).any(axis=0)
        absent = [name for name, is_there in zip(pool.classes, shown, strict=True) if not is_there]
        if absent:
            notes.append(f"classes that no image to {side} on shows: {_shorten(absent)}")
    return notes


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How the images of a transfer are found and split."""

    rule: SplitRule = field(default_factory=SplitRule)
    train_set: str = "trainval"
    """Image set of a VOC layout to learn from."""
    test_set: str = "test"
    """Image set of a VOC layout to test on."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where shards that have a URL are kept on this node."""


def open_task(
    location: str | Path,
    *,
    options: TaskOptions,
    pretrain: Store | None,
    folder: Path,
    on_progress: Progress = lambda what, done, total: None,
) -> Task:
    """Open the labelled images at a location, and say what is learned from and what is tested on.

    Shards without a split are split by the hash of their keys; a split that is there is kept. The
    limits of the rule hold for both. Every image is on one side or counted in the notes.

    Overlap is counted by content: "train/test" are the test images that are training images, too,
    "pretrain/train" and "pretrain/test" those that the trunk was trained on.

    Args:
        location: Shards (a path or a URL; or a folder with the shards train and test), a folder in
            VOC layout, or a tree with a folder for each class.
        options: Split and limits.
        pretrain: What the trunk was trained on.
        folder: Images that are no shards are packed below it.
        on_progress: Called while they are packed.

    Raises:
        ConfigError: There are no such images, or no labels, or fewer than 2 classes to learn.
    """
    sets = (options.train_set, options.test_set)
    prepared = prepare(location, folder, sets=sets, on_progress=on_progress)
    opened = {side: open_set(place, options.cache) for side, place in prepared.places.items()}
    pool = split_set(opened["all"], options.rule) if "all" in opened else pair_sets(**opened)
    sides = limit_pool(pool, options.rule)
    train, test = labelled(pool, sides)
    overlap, unknown = _count_overlap(train, test, pretrain)
    packed = [note for place in prepared.places.values() for note in packing_notes(place)]
    notes = (*prepared.notes, *packed, *count_notes(pool, sides), *class_notes(pool, sides))
    return Task(train, test, pool.classes, overlap, notes + unknown)


def _count_overlap(
    train: Labelled, test: Labelled, pretrain: Store | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Count what is in two of the sets, and say what can not be counted."""
    sets = {
        side: contents_of(s.store, s.sample_ids) for side, s in (("train", train), ("test", test))
    }
    pairs = (("train", "test"), ("pretrain", "train"), ("pretrain", "test"))
    if pretrain is None:
        return count_all(sets, pairs), ("overlap with the pretraining is not known: no shards",)
    if pretrain.is_remote and any(s.sha256 is None for s in pretrain.manifest.shards):
        note = "overlap with the pretraining is not known: its shards were indexed with --fast"
        return count_all(sets, pairs), (note,)
    return count_all(sets | {"pretrain": contents_of(pretrain)}, pairs), ()
