"""PASCAL VOC on disk: images, boxes and classes of an image set.

Every listed image and every object is in the result or counted in its problems.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.ingest.labelled import orientation_of
from pipeline.shards.headers import HeaderError, read_size
from training.transfer.images.voc_annotation import (
    Annotation,
    AnnotationError,
    Problems,
    read_annotation,
    usable_boxes,
)

# Shapes: N images, C classes, n objects of an image.


T = TypeVar("T")

_CLASS_SETS = ("trainval", "train", "val", "test")
_TARGETS = {"1": 1, "-1": 0, "0": -1}  # shown, not shown, shown but difficult
UNLISTED = -2
"""In `VocSet.listed`: no class file names the image."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def image_sets(part: Path, task: str = "Main") -> list[str]:
    """Name the image sets of a folder in VOC layout; class files are not image sets.

    Args:
        part: VOCdevkit/VOC2007.
        task: Main, Segmentation.
    """
    paths = sorted((part / "ImageSets" / task).glob("*.txt"))
    return [path.stem for path in paths if _class_of(path) is None]


def listed(part: Path, image_set: str, task: str = "Main") -> list[str]:
    """Return the ids of a set, in its order.

    Raises:
        ConfigError: There is no such set, it is empty, or it names an image outside the folder.
    """
    path = part / "ImageSets" / task / f"{image_set}.txt"
    if not path.is_file() or "/" in image_set:
        there = ", ".join(image_sets(part, task)) or "none"
        raise ConfigError(
            f"image set (={image_set}) is not in {path.parent}, which has: {there}. Name one of "
            "them."
        )
    ids = [line.split()[0] for line in _lines(path)]
    if not ids:
        raise ConfigError(f"image set (={image_set}) lists no image in {path}; name another set.")
    for image_id in ids:
        if "/" in image_id or "\\" in image_id or image_id.startswith("."):
            raise ConfigError(
                f"image set (={image_set}) names {image_id!r} in {path}, which is no name of a "
                "file in JPEGImages; give ids without folder and suffix."
            )
    return ids


def image_files(part: Path) -> dict[str, Path]:
    """Map ids to the images of a folder: JPEG, PNG and WebP by their suffix."""
    paths = sorted((part / "JPEGImages").iterdir())
    return {path.stem: path for path in paths if path.suffix.lower() in _SUFFIXES}


def class_names(part: Path) -> list[str]:
    """Name the classes that have a class file in ImageSets/Main, in alphabetical order."""
    paths = (part / "ImageSets" / "Main").glob("*_*.txt")
    return sorted({name for name in map(_class_of, paths) if name is not None})


def class_targets(
    part: Path, image_set: str, ids: Sequence[str], classes: Sequence[str], unlisted: int
) -> NDArray[np.int64]:
    """Read the targets of images from the class files of a set.

    Returns:
        int64 (N, C): 1 shown, 0 not shown, -1 shown but difficult, `unlisted` where the class
        file is missing or does not name the image.

    Raises:
        ConfigError: A class file holds values other than -1, 0 and 1.
    """
    targets = np.full((len(ids), len(classes)), unlisted, np.int64)
    for column, name in enumerate(classes):
        path = part / "ImageSets" / "Main" / f"{name}_{image_set}.txt"
        listed_here = _read_class_file(path) if path.is_file() else {}
        for row, image_id in enumerate(ids):
            targets[row, column] = listed_here.get(image_id, unlisted)
    return targets


def _read_class_file(path: Path) -> dict[str, int]:
    targets = {}
    for line in _lines(path):
        image_id, *rest = line.split()
        if len(rest) != 1 or rest[0] not in _TARGETS:
            raise ConfigError(
                f"class file (={path}) has the line {line!r}; each must be an id, then -1 (not "
                "shown), 0 (difficult) or 1 (shown)."
            )
        targets[image_id] = _TARGETS[rest[0]]
    return targets


def _class_of(path: Path) -> str | None:
    """Return the class whose file this is, None where it lists an image set."""
    for name in _CLASS_SETS:
        class_name = path.stem.removesuffix(f"_{name}")
        if class_name not in (path.stem, ""):
            first = _lines(path)[:1]
            return class_name if first and len(first[0].split()) == 2 else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"image set (={path}) cannot be read: {error}.") from None
    return [line for line in text.splitlines() if line.strip()]


@dataclass(frozen=True, slots=True)
class VocImage:
    """An image and its objects."""

    id: str
    path: Path
    width: int
    """Width in px of the upright image, whatever the annotation says."""
    height: int
    boxes: NDArray[np.float32]
    """(n, 4), left, top, right, bottom in px from 0, right and bottom exclusive; see
    `usable_boxes`."""
    labels: NDArray[np.int64]
    """(n,), class numbers."""
    difficult: NDArray[np.bool_]
    """(n,)."""
    orientation: int = 1
    """EXIF orientation of the stored file, 1 to 8; the boxes are those of the upright image."""


@dataclass(frozen=True, slots=True)
class VocSet:
    """The usable images of an image set, in its order."""

    images: tuple[VocImage, ...]
    classes: tuple[str, ...]
    """Names of the C classes, the same for all sets of a folder."""
    problems: dict[str, int]
    """Count of each problem; see `usable_boxes` and `read_voc`."""
    notes: tuple[str, ...]
    """Problems, with examples, and absent classes, one line each."""
    listed: NDArray[np.int64] | None = None
    """(N, C), targets of the class files as in `targets_of`, -2 where none names the image;
    None without class files."""


def read_voc(folder: Path, image_set: str, *, classes: Sequence[str] | None = None) -> VocSet:
    """Read an image set with its boxes.

    Counted and excluded: `missing_image`, `unreadable_image` (not JPEG, PNG or WebP, or truncated),
    `missing_annotation`, `unreadable_annotation`, `listed_twice` (the second time). Counted only:
    `image_in_no_set` (in JPEGImages but in no set of the folder), `class_file_differs` (class files
    and boxes disagree; the class files win in `targets_of`), `turned_upright` (EXIF turns or
    mirrors the image), `annotated_unturned` (its boxes are turned, too). Also what `usable_boxes`
    counts.

    Boxes are those of the upright image. An annotation whose size is that of the pixels as stored,
    and not that of the upright image, was made on unturned pixels: its boxes are turned with them.
    Where both sizes are the same or the annotation has none, it was made on the upright image, as
    every viewer shows it.

    Args:
        folder: Holds JPEGImages, Annotations and ImageSets/Main: VOCdevkit/VOC2007. Or holds such
            folders by year: VOCdevkit.
        image_set: Name of a file of ImageSets/Main: train, val, trainval, test. For a VOCdevkit,
            years and sets joined by plus: "2007_trainval+2012_trainval", in short "07+12".
        classes: Names in the order of their numbers. Default: those of the class files of
            ImageSets/Main, else of all annotations, in alphabetical order.

    Raises:
        ConfigError: There is no such folder, set or class, no image of the set is usable, a class
            file holds values other than -1, 0 and 1, or an annotation declares a document type.
    """
    parts = _parts(folder, image_set)
    if classes is None:
        known = {name for part, _ in parts for name in _classes_of(part)}
        classes = sorted(known)
    if not classes:
        raise ConfigError(
            f"voc (={folder}) names no class: ImageSets/Main has no class files and Annotations no "
            "objects. Give the folder of a labelled set."
        )
    problems = Problems()
    images: list[VocImage] = []
    tables = []
    for part, name in parts:
        found = _read_images(part, name, classes, problems)
        images += found
        tables.append(class_targets(part, name, [image.id for image in found], classes, UNLISTED))
    if not images:
        raise ConfigError(
            f"image set (={image_set}) has no image that can be used in voc (={folder}): "
            f"{'; '.join(problem_notes(problems, images, ()))}. Add what is missing."
        )
    targets = np.concatenate(tables)
    _compare(targets, images, len(classes), problems)
    return VocSet(
        tuple(images),
        tuple(classes),
        dict(problems.counts),
        problem_notes(problems, images, classes),
        None if (targets == UNLISTED).all() else targets,
    )


def targets_of(voc: VocSet) -> NDArray[np.int64]:
    """Return the targets of images: int64 (N, C), 1 shown, 0 not shown, -1 shown but difficult.

    From the class files (their 1, -1 and 0), else from the boxes: -1 where all boxes of the class
    are difficult.
    """
    targets = _from_boxes(voc.images, len(voc.classes))
    return targets if voc.listed is None else np.where(voc.listed == UNLISTED, targets, voc.listed)


def problem_notes(
    problems: Problems, images: Sequence[VocImage], classes: Sequence[str]
) -> tuple[str, ...]:
    """Report problems, one line each: count, kind, and examples."""
    lines = [
        f"{problems.counts[kind]} {kind} ({', '.join(problems.examples[kind])}"
        f"{', ...' if problems.counts[kind] > len(problems.examples[kind]) else ''})"
        for kind in sorted(problems.counts)
    ]
    absent = absent_classes(images, classes)
    if absent:
        lines.append(
            f"no object that is not difficult of: {', '.join(absent)}; average precision is "
            "undefined there and excluded from means"
        )
    return tuple(lines)


def absent_classes(images: Sequence[VocImage], classes: Sequence[str]) -> list[str]:
    """Name the classes of which every object, if any, is difficult."""
    labels = [image.labels[~image.difficult] for image in images]
    there = set(np.concatenate(labels).tolist()) if labels else set()
    return [name for number, name in enumerate(classes) if number not in there]


def _parts(folder: Path, image_set: str) -> list[tuple[Path, str]]:
    if (folder / "JPEGImages").is_dir():
        return [(folder, image_set)]
    years = sorted(p.name[3:] for p in folder.glob("VOC2*") if (p / "JPEGImages").is_dir())
    if not years:
        raise ConfigError(
            f"voc (={folder}) holds no JPEGImages; give a folder in VOC layout: VOCdevkit/VOC2007, "
            "or a VOCdevkit that holds such folders."
        )
    names = "2007_trainval+2012_trainval" if image_set == "07+12" else image_set
    parts = [name.partition("_") for name in names.split("+")]
    if any(year not in years or not name for year, _, name in parts):
        raise ConfigError(
            f"image set (={image_set}) must name years and sets of voc (={folder}), which has "
            f"{', '.join(years)}; for example {years[0]}_trainval."
        )
    return [(folder / f"VOC{year}", name) for year, _, name in parts]


def _classes_of(part: Path) -> list[str]:
    names = class_names(part)
    if names:
        return names
    found = set()
    for path in sorted((part / "Annotations").glob("*.xml")):
        annotation = _annotation(path)
        found |= set(annotation.names) if isinstance(annotation, Annotation) else set()
    return sorted(found - {""})


def _read_images(
    part: Path, name: str, classes: Sequence[str], problems: Problems
) -> list[VocImage]:
    files = image_files(part)
    for lost in sorted(set(files) - {i for s in image_sets(part) for i in listed(part, s)}):
        problems.add("image_in_no_set", lost)
    return read_each(
        listed(part, name),
        lambda image_id: _read_image(part, image_id, files.get(image_id), classes, problems),
        problems,
    )


def read_each(ids: Sequence[str], read: Callable[[str], T | str], problems: Problems) -> list[T]:
    """Read each id once; count the problem where `read` returns one, or an id is listed twice."""
    images: list[T] = []
    seen: set[str] = set()
    for image_id in ids:
        found = "listed_twice" if image_id in seen else read(image_id)
        seen.add(image_id)
        if isinstance(found, str):
            problems.add(found, image_id)
        else:
            images.append(found)
    return images


@dataclass(frozen=True, slots=True)
class Stored:
    """How an image file is stored, and how it is to be shown."""

    size: tuple[int, int]
    """Width and height in px of the pixels as stored."""
    orientation: int
    """EXIF orientation, 1 to 8."""

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height in px of the upright image."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def is_of_unturned(self, size: tuple[int, int] | None) -> bool:
        """Whether something of this size was made on the pixels as stored, not as shown."""
        return size == self.size != self.shown


def stored_as(path: Path) -> Stored | None:
    """Read how an image is stored, None where it is damaged."""
    try:
        data = path.read_bytes()
        return Stored(read_size(memoryview(data)), orientation_of(data))
    except (HeaderError, OSError):
        return None


def turned_boxes(boxes: NDArray[np.float32], stored: Stored) -> NDArray[np.float32]:
    """Turn boxes (n, 4) of the pixels as stored into those of the upright image."""
    left, top, right, bottom = boxes.T
    width, height = stored.size
    if stored.orientation >= 5:  # Rows become columns.
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if stored.orientation in (3, 4, 7, 8):  # Then top and bottom are exchanged.
        top, bottom = height - bottom, height - top
    if stored.orientation in (2, 3, 6, 7):  # Then left and right.
        left, right = width - right, width - left
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def _read_image(
    part: Path, image_id: str, path: Path | None, classes: Sequence[str], problems: Problems
) -> VocImage | str:
    """Read one image, or return its problem."""
    if path is None:
        return "missing_image"
    stored = stored_as(path)
    if stored is None:
        return "unreadable_image"
    annotation = _annotation(part / "Annotations" / f"{image_id}.xml")
    if isinstance(annotation, str):
        return annotation
    is_unturned = stored.is_of_unturned(annotation.size)
    size = stored.size if is_unturned else stored.shown
    found, odd = usable_boxes(annotation, classes, size, image_id)
    problems.update(odd)
    if stored.orientation != 1:
        problems.add("turned_upright", image_id)
    if is_unturned:
        problems.add("annotated_unturned", image_id)
    boxes = turned_boxes(found.boxes, stored) if is_unturned else found.boxes
    return VocImage(
        image_id, path, *stored.shown, boxes, found.labels, found.difficult, stored.orientation
    )


def _annotation(path: Path) -> Annotation | str:
    try:
        return read_annotation(path.read_bytes(), str(path))
    except FileNotFoundError:
        return "missing_annotation"
    except (AnnotationError, OSError):
        return "unreadable_annotation"


def _from_boxes(images: Sequence[VocImage], num_classes: int) -> NDArray[np.int64]:
    targets = np.zeros((len(images), num_classes), np.int64)
    for row, image in zip(targets, images, strict=True):
        row[image.labels[image.difficult]] = -1
        row[image.labels[~image.difficult]] = 1
    return targets


def _compare(
    targets: NDArray[np.int64], images: Sequence[VocImage], num_classes: int, problems: Problems
) -> None:
    differs = (targets != UNLISTED) & (targets != _from_boxes(images, num_classes))
    for row in np.flatnonzero(differs.any(axis=1)):
        problems.add("class_file_differs", images[int(row)].id)
