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

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "dev")
"""The first that exists is the test side."""
_WRAPPERS = ("images", "image", "imgs", "img", "data")
"""Folders that hold the others and name no class."""
_LEFTOVERS = ("__macosx", "@eadir", "$recycle.bin", "lost+found")
"""Folders that archivers, file servers and systems leave; nothing in them is an image of a set."""
# Names of all four are compared without regard to case.


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

    Folders train or training, and test, testing, val, valid, validation or dev, where present, are
    the split and hold the class folders, whatever their case. A folder images, image, imgs, img or
    data that holds all others is opened, and __MACOSX, @eaDir and their like are passed over; the
    notes say so. None of these is ever a class; a name that only contains one, as bullet_train, is.
    So is a train without folders in it, beside other classes: it may be one of vehicles.

    Files may be at any depth below their class folder. Names that begin with a dot are ignored.
    Files outside the class folders are counted in the notes.

    Args:
        root: The tree.
        without: Folders that are not classes.

    Raises:
        ConfigError: There are fewer than 2 folders of classes, a train without a test or a test
            without a train, or a folder of such a name where the classes are.
    """
    top = _opened(root)
    parts = {side: _opened(folder) for side, folder in _split_folders(top).items()}
    named = {
        side: [path for path in _folders(folder) if path.name not in without]
        for side, folder in parts.items()
    }
    for side, folder in parts.items():
        _require_classes(folder, named[side])
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
    return Listing(tuple(map(plain, classes)), sides, _stray_notes(root, top, parts))


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


def _opened(folder: Path) -> Path:
    """Return what a wrapper holds, at any depth; else the folder itself."""
    while len(found := _folders(folder)) == 1 and _is_of(found[0], _WRAPPERS):
        (folder,) = found
    return folder


def _split_folders(root: Path) -> dict[str, Path]:
    folders = _folders(root)
    train = [path for path in folders if _is_of(path, _TRAIN)]
    tests = [path for name in _TEST for path in folders if _is_of(path, (name,))]
    if not tests and all(not _folders(path) for path in train):  # It may be a class of vehicles.
        return {"all": root}
    for kind in (train, tests):
        twice = [path.name for path in kind if path.name.casefold() == kind[0].name.casefold()]
        twice = [path.name for path in kind] if kind is train else twice
        if len(twice) > 1:
            raise ConfigError(
                f"data (={plain(root)}) holds {' and '.join(map(plain, twice))}, which name the "
                "same side of a split; leave one."
            )
    if not train:
        there = " and ".join(f"{plain(path.name)}/" for path in tests)
        raise ConfigError(
            f"data (={plain(root)}) has {there} and no train/ or training/; add the images to "
            f"learn from, or give {plain(tests[0].name)}/ itself, which is split then."
        )
    if not tests:
        raise ConfigError(
            f"data (={plain(root)}) has {plain(train[0].name)}/ and none of {', '.join(_TEST)}; "
            f"add the images to test on, or give {plain(train[0].name)}/ itself, which is split "
            "then."
        )
    return {"train": train[0], "test": tests[0]}


def _require_classes(folder: Path, classes: Sequence[Path]) -> None:
    """Refuse folders whose names are those of a split or a wrapper, not of a class.

    Raises:
        ConfigError: There are such.
    """
    odd = [path for path in classes if _is_of(path, (*_TRAIN, *_TEST, *_WRAPPERS))]
    if all(_is_of(path, ("train",)) and not _folders(path) for path in odd):
        return
    shown = ", ".join(f"{plain(path.name)}/" for path in odd)
    raise ConfigError(
        f"data (={plain(folder)}) holds {shown} where folders of classes are expected: the name is "
        "one of a split or a wrapper, never of a class. Move the images up, or rename the folder."
    )


def _is_of(path: Path, names: Sequence[str]) -> bool:
    return path.name.casefold() in names


def _folders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in found if not _is_of(path, _LEFTOVERS))


def _files(folder: Path) -> Iterator[Path]:
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name.casefold() not in _LEFTOVERS
        )
        for name in sorted(names):
            path = Path(below, name)
            if not name.startswith(".") and path.is_file():  # Not a pipe, socket or device.
                yield path


def _stray_notes(root: Path, top: Path, parts: Mapping[str, Path]) -> tuple[str, ...]:
    places = sorted({root, top, *parts.values()})
    entries = [path for place in places for path in sorted(place.iterdir())]
    strays = [p.name for p in entries if not p.name.startswith(".") and not p.is_dir()]
    left = sorted({plain(p.name) for p in entries if p.is_dir() and _is_of(p, _LEFTOVERS)})
    notes = [f"{len(strays)} files outside of the classes ({plain(strays[0])})"] if strays else []
    if left:
        notes.append(f"folders passed over: {', '.join(left)}")
    if top != root:
        notes.append(f"the folders of classes or sides are in {plain(top.relative_to(root))}/")
    if "train" not in parts:
        return tuple(notes)
    used = {path.relative_to(top).parts[0] for path in parts.values()}
    others = [path.name for path in _folders(top) if path.name not in used]
    if others:
        train, test = (parts[side].relative_to(top).parts[0] for side in ("train", "test"))
        beside = f"folders beside {plain(train)} and {plain(test)}"
        notes.append(f"{beside}: {', '.join(map(plain, others))}")
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
