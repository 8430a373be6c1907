"""Labelled images as files: a folder for each class, with or without a split, and VOC layout."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed, content_key
from training.transfer.images.voc import VocSet, read_voc, targets_of

_TEST_NAMES = ("test", "val", "validation")  # The first that is there is tested on.


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """One file of a data set, before it is read."""

    path: Path
    label: int = -1
    """Class number; -1 where the image may show several."""
    source: str = ""
    """Its path below the data set, in plain Unicode."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """For the sample's .json."""
    members: Mapping[str, Path] = field(default_factory=dict)
    """Other files of the sample, by ending."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of a data set."""

    classes: tuple[str, ...]
    sides: Mapping[str, Sequence[LabelledFile]]
    """"train" and "test" where the set has a split, or "all"."""
    notes: tuple[str, ...] = ()
    """What is odd, a line each."""


def list_tree(root: Path, *, without: Sequence[str] = ()) -> Listing:
    """List a tree with a folder for each class, by name.

    Where the tree has folders train and test (or val, or validation), they hold the folders of the
    classes, and are its split. Files may lie at any depth below the folder of their class. Names
    that begin with a dot are passed over. Files outside of the folders are counted in the notes.

    Args:
        root: The tree.
        without: Folders that are no class.

    Raises:
        ConfigError: There are fewer than 2 folders of classes, or a train without a test.
    """
    parts = _split_folders(root)
    named = {
        side: [path for path in _folders(folder) if path.name not in without]
        for side, folder in parts.items()
    }
    classes = sorted({path.name for folders in named.values() for path in folders})
    if len(classes) < 2:
        raise ConfigError(
            f"data (={root}) has {len(classes)} folders of classes, a transfer needs at least 2. "
            "Give shards, a folder in VOC layout, or a tree with a folder for each class."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    sides = {
        side: [
            LabelledFile(path, numbers[folder.name], plain(path.relative_to(root)))
            for folder in folders
            for path in _files(folder)
        ]
        for side, folders in named.items()
    }
    return Listing(tuple(map(plain, classes)), sides, _stray_notes(root, parts))


def list_voc(folder: Path, train_set: str, test_set: str) -> Listing:
    """List two image sets in VOC layout; an image's .json says what it shows.

    Raises:
        ConfigError: There is no such set, or it has no image that can be used.
    """
    train = read_voc(folder, train_set)
    test = read_voc(folder, test_set, classes=train.classes)
    sides = {"train": _voc_files(folder, train), "test": _voc_files(folder, test)}
    notes = [f"{train_set}: {note}" for note in train.notes]
    notes += [f"{test_set}: {note}" for note in test.notes]
    return Listing(train.classes, sides, tuple(notes))


def read_listed(files: Sequence[LabelledFile]) -> Iterator[Packed]:
    """Read the files, and name them by `name_packed`.

    Raises:
        ConfigError: A file cannot be read.
    """
    return name_packed(_read_listed(one) for one in files)


def name_packed(images: Iterable[Packed]) -> Iterator[Packed]:
    """Name images by their content; a copy of an earlier one has a number behind it."""
    copies: Counter[str] = Counter()
    for image in images:
        key = content_key(image.data)
        copies[key] += 1
        yield replace(image, key=key if copies[key] == 1 else f"{key}-{copies[key]}")


def plain(path: str | Path) -> str:
    r"""Write a path as plain Unicode; bytes that are no UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _split_folders(root: Path) -> dict[str, Path]:
    train = root / "train"
    if not train.is_dir() or not _folders(train):  # Vehicles have a class of that name, too.
        return {"all": root}
    for name in _TEST_NAMES:
        if (root / name).is_dir():
            return {"train": train, "test": root / name}
    raise ConfigError(
        f"data (={root}) has train/ and none of {', '.join(_TEST_NAMES)}; add the images to test "
        "on, or give train/ itself, which is split then."
    )


def _folders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found)


def _files(folder: Path) -> Iterator[Path]:
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(below, name)
            if not name.startswith(".") and path.is_file():  # No pipe, socket or device.
                yield path


def _stray_notes(root: Path, parts: Mapping[str, Path]) -> tuple[str, ...]:
    places = {root, *parts.values()}
    strays = [
        path.name
        for place in sorted(places)
        for path in sorted(place.iterdir())
        if not path.name.startswith(".") and not path.is_dir()
    ]
    notes = [f"{len(strays)} files outside of the classes ({plain(strays[0])})"] if strays else []
    used = {path.name for path in parts.values()}
    others = [path.name for path in _folders(root) if path.name not in used] if used else []
    if "train" in parts and others:
        notes.append(f"folders beside train and {parts['test'].name}: {', '.join(others)}")
    return tuple(notes)


def _voc_files(folder: Path, voc: VocSet) -> list[LabelledFile]:
    files = []
    for image, targets in zip(voc.images, targets_of(voc).tolist(), strict=True):
        shown = {voc.classes[c]: told for c, told in enumerate(targets) if told}
        annotation = image.path.parent.parent / "Annotations" / f"{image.id}.xml"
        source = plain(image.path.relative_to(folder))
        files.append(
            LabelledFile(
                image.path, -1, source, {"id": image.id, "shown": shown}, {"xml": annotation}
            )
        )
    return files


def _read_listed(one: LabelledFile) -> Packed:
    members = {ending: _read(path) for ending, path in one.members.items()}
    return Packed("", _read(one.path), one.label, one.source, one.about, members)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"image (={plain(path)}) cannot be read: {error.strerror}.") from None
