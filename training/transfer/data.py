"""The images of a transfer: found, split, and counted for overlap."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.remote.cache import CacheConfig
from pipeline.shards.store import Store
from training.transfer.job import Labelled, Progress, Task
from training.transfer.notes import class_notes, count_notes, packing_notes
from training.transfer.overlap import contents_of, count_all
from training.transfer.pool import labelled, limit_pool, open_set, pair_sets, split_set
from training.transfer.prepare import prepare
from training.transfer.split import SplitRule


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
