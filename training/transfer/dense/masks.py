"""Segmentation masks of PASCAL VOC on disk, and the IoU of predictions with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ConfigError
from pipeline.ingest.gate.decoded import upright
from training.transfer.images.voc import class_names, image_files, listed, read_each, stored_as
from training.transfer.images.voc_annotation import Problems

# Shapes: K classes with the background, H/W size of an image.


BACKGROUND = "background"
VOID = 255
"""Pixels that belong to no class: borders of objects, and difficult objects."""


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image and its mask."""

    id: str
    path: Path
    mask: Path
    """PNG whose palette index or gray value is the class: 0 background, 255 void."""
    width: int
    """Width in px of the upright image."""
    height: int
    orientation: int = 1
    """EXIF orientation of the stored image, 1 to 8."""
    mask_orientation: int = 1
    """By what the mask is turned: the image's where it was made on the unturned pixels."""


@dataclass(frozen=True, slots=True)
class MaskedSet:
    """The usable images of a set, in its order."""

    images: tuple[MaskedImage, ...]
    classes: tuple[str, ...]
    """Names of the K classes, the background first."""
    problems: dict[str, int]
    """Count of each problem, see `read_masked`."""


def read_masked(folder: Path, image_set: str) -> MaskedSet:
    """Read a set of ImageSets/Segmentation.

    Counted and excluded: `missing_image`, `unreadable_image`, `missing_mask`, `unreadable_mask`,
    `size_differs` (image and mask differ in size), `listed_twice` (the second time). Counted only:
    `turned_upright` (EXIF turns or mirrors the image), `annotated_unturned` (the mask is turned,
    too: it has the size of the pixels as stored, not that of the upright image).

    Args:
        folder: VOCdevkit/VOC2012. Its class files in ImageSets/Main name the classes, in
            alphabetical order; without them, classes are named by the numbers in all masks.
        image_set: train, val, trainval.

    Raises:
        ConfigError: The folder holds no masks, has no such set, or no image of it is usable.
    """
    if not (folder / "SegmentationClass").is_dir() or not (folder / "JPEGImages").is_dir():
        raise ConfigError(
            f"voc (={folder}) holds no SegmentationClass beside JPEGImages: there is nothing to "
            "segment. Give a folder with masks, or remove the job segmentation."
        )
    files, problems = image_files(folder), Problems()
    images = read_each(
        listed(folder, image_set, "Segmentation"),
        lambda image_id: _read_one(folder, image_id, files.get(image_id), problems),
        problems,
    )
    if not images:
        odd = ", ".join(f"{count} {kind}" for kind, count in problems.counts.items())
        raise ConfigError(
            f"image set (={image_set}) has no image that can be used in voc (={folder}): {odd}. "
            "Add what is missing."
        )
    names = class_names(folder) or _numbers(folder)
    return MaskedSet(tuple(images), (BACKGROUND, *names), dict(problems.counts))


def read_mask(image: MaskedImage, num_classes: int) -> NDArray[np.uint8]:
    """Read the class of every pixel of the upright image: uint8 (H, W), 255 for void.

    Raises:
        ConfigError: It names an unknown class, or is not a palette or gray PNG.
    """
    indexes = read_indexes(image.mask)
    wrong = np.unique(indexes[(indexes >= num_classes) & (indexes != VOID)])
    if len(wrong):
        raise ConfigError(
            f"mask (={image.mask}) names class {wrong[0]} of {num_classes} with the background; "
            "add the class to ImageSets/Main or mend the mask."
        )
    return upright(indexes[..., None], image.mask_orientation)[..., 0]


def read_indexes(path: Path) -> NDArray[np.uint8]:
    """Read the raw values of a mask: uint8 (H, W).

    Raises:
        ConfigError: It is not a palette or gray PNG, or does not decode.
    """
    try:
        with Image.open(path) as mask:
            mode, indexes = mask.mode, np.array(mask)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: a broken chunk.
        raise ConfigError(f"mask (={path}) does not decode: {error}; mend or unlist it.") from None
    if mode not in ("P", "L"):
        raise ConfigError(
            f"mask (={path}) has pixels of mode {mode}, not the index of a class; give PNGs with a "
            "palette, as VOC has them, or with one gray channel."
        )
    return indexes.astype(np.uint8)


def fitted_mask(
    indexes: NDArray[np.uint8], size: tuple[int, int], *, mirrored: bool
) -> NDArray[np.uint8]:
    """Resize a mask to (height, width) by nearest neighbour, then mirror it where asked."""
    height, width = size
    resized = np.asarray(Image.fromarray(indexes).resize((width, height), Image.Resampling.NEAREST))
    return resized[:, ::-1] if mirrored else resized


def count_pixels(
    truth: NDArray[np.uint8], guess: NDArray[np.integer[Any]], num_classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix: int64 (K, K), rows truth, columns guess, void pixels ignored.

    Args:
        truth: (H, W), 255 where void.
        guess: (H, W), 0..K - 1.
        num_classes: K.
    """
    there = truth != VOID
    pairs = truth[there].astype(np.int64) * num_classes + guess[there]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def overlaps_of_classes(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the intersection over union of each class, float64 (K,), 0 to 1.

    Over the pixels of all images together; NaN for a class without a true pixel.

    Args:
        counts: (K, K), sum of `count_pixels` over all images.
    """
    both = np.diag(counts).astype(np.float64)
    true, guessed = counts.sum(axis=1), counts.sum(axis=0)
    union = true + guessed - both
    shares: NDArray[np.float64] = np.full_like(both, np.nan)
    np.divide(both, union, out=shares, where=true > 0)
    return shares


def _read_one(
    folder: Path, image_id: str, path: Path | None, problems: Problems
) -> MaskedImage | str:
    """Read the sizes of an image and its mask, or return their problem."""
    mask = folder / "SegmentationClass" / f"{image_id}.png"
    if path is None:
        return "missing_image"
    if not mask.is_file():
        return "missing_mask"
    stored, of_mask = stored_as(path), stored_as(mask)
    if stored is None or of_mask is None:
        return "unreadable_mask" if stored else "unreadable_image"
    is_unturned = stored.is_of_unturned(of_mask.size)
    if of_mask.size != stored.shown and not is_unturned:
        return "size_differs"
    if stored.orientation != 1:
        problems.add("turned_upright", image_id)
    if is_unturned:
        problems.add("annotated_unturned", image_id)
    turn = stored.orientation if is_unturned else 1
    return MaskedImage(image_id, path, mask, *stored.shown, stored.orientation, turn)


def _numbers(folder: Path) -> list[str]:
    """Name classes by number, up to the largest in any readable mask of the folder."""
    largest = max((int(i[i != VOID].max(initial=0)) for i in _all_indexes(folder)), default=0)
    return [str(number) for number in range(1, largest + 1)]


def _all_indexes(folder: Path) -> Iterator[NDArray[np.uint8]]:
    for path in sorted((folder / "SegmentationClass").glob("*.png")):
        if stored_as(path) is not None:
            yield read_indexes(path)
