"""The labelled images of a transfer: located, packed, split, and checked for overlap."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from pipeline.config import ConfigError
from pipeline.ingest.labelled import FORMAT_VERSION, ORIENTATION, Packed, pack
from pipeline.remote.cache import CacheConfig
from pipeline.remote.location import is_remote
from pipeline.shards.manifest import FILE_NAME, LEDGER_NAME
from pipeline.shards.store import Store
from training.transfer.images.pool import (
    Pool,
    SplitRows,
    SplitRule,
    contents_of,
    count_all,
    labelled,
    limit_pool,
    open_set,
    pair_sets,
    split_set,
)
from training.transfer.images.tree import LabelledFile, Listing, list_tree, list_voc, read_listed
from training.transfer.job import Labelled, Progress, TransferTask

_MAX_NAMED = 10  # names in a note


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How the images of a transfer are located and split."""

    rule: SplitRule = field(default_factory=SplitRule)
    train_set: str = "trainval"
    """Image set of a VOC layout to train on."""
    test_set: str = "test"
    """Image set of a VOC layout to test on."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are cached on this node."""


def open_task(
    location: str | Path,
    *,
    options: TaskOptions,
    pretrain: Store | None,
    folder: Path,
    on_progress: Progress = lambda what, done, total: None,
) -> TransferTask:
    """Open the labelled images at a location as training and test images.

    An official split is kept; other sets are split by the hash of their keys. The limits of the
    rule apply to both. Every image is on one side or counted in the notes.

    Overlap is counted by content: "train/test" are the test images that are also training images,
    "pretrain/train" and "pretrain/test" those that the trunk was pretrained on.

    Args:
        location: Shards (a path or a URL; or a folder with the shards train and test), a folder in
            VOC layout, or a tree with a folder for each class.
        options: Split and limits.
        pretrain: Images the trunk was pretrained on.
        folder: Where images that are not shards are packed.
        on_progress: Called while they are packed.

    Raises:
        ConfigError: There are no such images, no labels, or fewer than 2 classes to learn.
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
    return TransferTask(train, test, pool.classes, overlap, notes + unknown)


def _count_overlap(
    train: Labelled, test: Labelled, pretrain: Store | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Count the images that two sets share; returns notes on what cannot be counted."""
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """Labelled shards, with or without a split."""

    places: dict[str, str]
    """Path or URL of the shards: "train" and "test", or "all"."""
    notes: tuple[str, ...] = ()
    """Oddities of the files, one line each."""


def prepare(
    location: str | Path, folder: Path, *, sets: tuple[str, str], on_progress: Progress
) -> Prepared:
    """Detect what is at a location, and pack it unless it is shards.

    Shards are a manifest or its folder, as a path or a URL, or a folder that holds the shards train
    and test. A folder in VOC layout and a tree with a folder for each class are packed into
    `folder`/data, under a name with the hash of their content, so again only when it changes.

    Args:
        location: Path or URL.
        folder: Where packed shards go.
        sets: Image sets of a VOC layout to train and to test on.
        on_progress: Called while files are read and packed.

    Raises:
        ConfigError: The location holds nothing of the kind, or a file cannot be read.
    """
    text = str(location)
    path = Path(text)
    if is_remote(text) or path.is_file() or (path / FILE_NAME).exists():
        return Prepared({"all": text})
    if not path.is_dir():
        raise ConfigError(
            f"data (={text}) is not there; give shards, a folder in VOC layout, or a tree with a "
            "folder for each class."
        )
    packed = {side: path / side for side in ("train", "test")}
    if all((place / FILE_NAME).exists() for place in packed.values()):
        return Prepared({side: str(place) for side, place in packed.items()})
    is_voc = (path / "JPEGImages").is_dir() or any(path.glob("VOC2*/JPEGImages"))
    listing = list_voc(path, *sets) if is_voc else list_tree(path)
    digest = _digest(listing, on_progress)
    place = folder / "data" / f"{path.resolve().name}-{digest}"
    return Prepared(pack_listing(listing, place, on_progress), listing.notes)


def pack_listing(listing: Listing, out: Path, on_progress: Progress) -> dict[str, str]:
    """Pack every side of a listing that is not packed yet; returns their locations.

    Raises:
        ConfigError: A side has no image, or a file cannot be read.
    """
    places = {side: out if side == "all" else out / side for side in listing.sides}
    for side, files in listing.sides.items():
        if not (places[side] / FILE_NAME).exists():
            images = _counted(files, f"packing {side}", on_progress)
            pack(images, places[side], listing.classes, about={"side": side})
    return {side: str(place) for side, place in places.items()}


def _digest(listing: Listing, on_progress: Progress) -> str:
    """Hash names, contents and labels of all files of a listing to 16 hex digits."""
    state = xxhash.xxh3_64(repr((FORMAT_VERSION, listing.classes)).encode())
    for side, files in listing.sides.items():
        state.update(side.encode())
        for image in _counted(files, f"reading {side}", on_progress):
            row = (image.source, image.key, image.label, sorted(image.about.items()))
            members = [(e, xxhash.xxh3_64_hexdigest(d)) for e, d in sorted(image.members.items())]
            state.update(repr((row, members)).encode())
    return state.hexdigest()


def _counted(files: Sequence[LabelledFile], what: str, on_progress: Progress) -> Iterator[Packed]:
    for done, image in enumerate(read_listed(files), 1):
        yield image
        on_progress(what, done, len(files))


def packing_notes(place: str) -> list[str]:
    """Report what packing excluded or re-encoded, from the ledger beside the shards."""
    try:
        lines = (Path(place) / LEDGER_NAME).read_text(encoding="utf-8").splitlines()
    except OSError:  # A URL, or third-party shards.
        return []
    words = {"quarantined": "can not be used", "encoded": "are stored anew as PNG"}
    every = (json.loads(line) for line in lines)
    rows = [row for row in every if row["verdict"] in words]  # A duplicate has no reason.
    kinds = Counter((row["verdict"], row["reason"]) for row in rows)
    first = {(row["verdict"], row["reason"]): row["path"] for row in reversed(rows)}
    told = {ORIENTATION: "turned upright as their EXIF orientation says"}
    return [
        f"{count} images {words[verdict]}: {told.get(reason, reason)} ({first[verdict, reason]})"
        for (verdict, reason), count in sorted(kinds.items())
    ]


def count_notes(pool: Pool, sides: SplitRows) -> list[str]:
    """Report why images of the shards are on no side; each is counted once."""
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
    """Name the classes that no image shows."""
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
