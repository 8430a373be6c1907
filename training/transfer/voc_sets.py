"""The lists of PASCAL VOC: which images a set has, and which classes they show."""

# Shapes: N images, C classes.

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError

_CLASS_SETS = ("trainval", "train", "val", "test")
_TOLD = {"1": 1, "-1": 0, "0": -1}  # shown, not shown, shown but difficult
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def image_sets(part: Path, task: str = "Main") -> list[str]:
    """Name the image sets of a folder in VOC layout; class files are none.

    Args:
        part: VOCdevkit/VOC2007.
        task: Main, Segmentation.
    """
    paths = sorted((part / "ImageSets" / task).glob("*.txt"))
    return [path.stem for path in paths if _class_of(path) is None]


def listed(part: Path, image_set: str, task: str = "Main") -> list[str]:
    """Return the ids of a set, in its order.

    Raises:
        ConfigError: There is no such set, it is empty, or it names an image outside of the folder.
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
    """Find the images of a folder by their ids: JPEG, PNG and WebP by their suffix."""
    paths = sorted((part / "JPEGImages").iterdir())
    return {path.stem: path for path in paths if path.suffix.lower() in _SUFFIXES}


def class_names(part: Path) -> list[str]:
    """Name the classes that have a class file in ImageSets/Main, in alphabetical order."""
    paths = (part / "ImageSets" / "Main").glob("*_*.txt")
    return sorted({name for name in map(_class_of, paths) if name is not None})


def class_targets(
    part: Path, image_set: str, ids: Sequence[str], classes: Sequence[str], unlisted: int
) -> NDArray[np.int64]:
    """Read what the class files of a set say of images.

    Returns:
        int64 (N, C): 1 shown, 0 not shown, -1 shown but difficult, `unlisted` where the file of the
        class does not name the image or is not there.

    Raises:
        ConfigError: A class file holds other than -1, 0 and 1.
    """
    targets = np.full((len(ids), len(classes)), unlisted, np.int64)
    for column, name in enumerate(classes):
        path = part / "ImageSets" / "Main" / f"{name}_{image_set}.txt"
        told = _told(path) if path.is_file() else {}
        for row, image_id in enumerate(ids):
            targets[row, column] = told.get(image_id, unlisted)
    return targets


def _told(path: Path) -> dict[str, int]:
    told = {}
    for line in _lines(path):
        image_id, *rest = line.split()
        if len(rest) != 1 or rest[0] not in _TOLD:
            raise ConfigError(
                f"class file (={path}) has the line {line!r}; each must be an id, then -1 (not "
                "shown), 0 (difficult) or 1 (shown)."
            )
        told[image_id] = _TOLD[rest[0]]
    return told


def _class_of(path: Path) -> str | None:
    """Return the class whose file this is, None where it lists a whole set."""
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
