"""Labelled image files: a tree with a folder for each class, or VOC layout."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed, content_key
from training.transfer.images.voc import VocSet, read_voc, targets_of

_TEST_NAMES = ("test", "val", "validation")  # The first that exists is the test side.


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """One image file of a data set, not read yet."""

    path: Path
    label: int = -1
    """Class number; -1 in multi-label sets."""
    source: str = ""
    """Path relative to the data set, in plain Unicode."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Content of the sample's .json."""
    members: Mapping[str, Path] = field(default_factory=dict)
    """Other files of the sample, by extension."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of a data set."""

    classes: tuple[str, ...]
    sides: Mapping[str, Sequence[LabelledFile]]
    """"train" and "test" where the set has a split, or "all"."""
    notes: tuple[str, ...] = ()
    """Oddities, one line each."""


def list_tree(root: Path, *, without: Sequence[str] = ()) -> Listing:
    """List a tree with a folder for each class, sorted by name.

    Folders train and test (or val, or validation), where present, are the split and hold the class
    folders. Files may be at any depth below their class folder. Names that begin with a dot are
    ignored. Files outside the class folders are counted in the notes.

    Args:
        root: The tree.
        without: Folders that are not classes.

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
    """List two image sets in VOC layout; the .json of an image holds its targets.

    Raises:
        ConfigError: There is no such set, or it has no usable image.
    """
    train = read_voc(folder, train_set)
    test = read_voc(folder, test_set, classes=train.classes)
    sides = {"train": _voc_files(folder, train), "test": _voc_files(folder, test)}
    notes = [f"{train_set}: {note}" for note in train.notes]
    notes += [f"{test_set}: {note}" for note in test.notes]
    return Listing(train.classes, sides, tuple(notes))


def read_listed(files: Sequence[LabelledFile]) -> Iterator[Packed]:
    """Read the files, with keys from `name_packed`.

    Raises:
        ConfigError: A file cannot be read.
    """
    return name_packed(_read_listed(one) for one in files)


def name_packed(images: Iterable[Packed]) -> Iterator[Packed]:
    """Key images by their content; a duplicate of an earlier one gets a number as suffix."""
    copies: Counter[str] = Counter()
    for image in images:
        key = content_key(image.data)
        copies[key] += 1
        yield replace(image, key=key if copies[key] == 1 else f"{key}-{copies[key]}")


def plain(path: str | Path) -> str:
    r"""Return a path as plain Unicode; bytes that are not UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _split_folders(root: Path) -> dict[str, Path]:
    train = root / "train"
    if not train.is_dir() or not _folders(train):  # It may be a class of vehicles.
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
            if not name.startswith(".") and path.is_file():  # Not a pipe, socket or device.
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
        shown = {voc.classes[c]: target for c, target in enumerate(targets) if target}
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
