"""Public data sets in torchvision's layout: images, classes and official split."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed
from training.transfer.images.tree import (
    LabelledFile,
    Listing,
    list_tree,
    list_voc,
    name_packed,
    read_listed,
)

SetName = Literal[
    "caltech101",
    "imagenette",
    "cifar10",
    "cifar100",
    "flowers102",
    "pets",
    "voc2007",
    "voc2012",
]

_VOC_SETS = {"voc2007": ("trainval", "test"), "voc2012": ("train", "val")}  # 2012's test is secret.
_FLOWERS = {"train": ("trnid", "valid"), "test": ("tstid",)}


@dataclass(frozen=True, slots=True)
class Side:
    """The images of one side of a split, in a fixed order."""

    num_images: int
    read: Callable[[], Iterator[Packed]]


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A public data set on disk."""

    classes: tuple[str, ...]
    sides: Mapping[str, Side]
    """"train" and "test", or "all" where there is no official split."""
    notes: tuple[str, ...] = ()
    """Oddities, one line each."""


def read_known(name: SetName, root: Path) -> KnownSet:
    """Open a data set below the folder that torchvision calls its root.

    caltech101 has no official split; its class of web images, not one of the 101, is excluded.
    flowers102 trains on its sets train and val; imagenette tests on val; voc2012 trains on train
    and tests on val.

    Raises:
        ConfigError: It is missing, or differs from what was published.
    """
    match name:
        case "cifar10" | "cifar100":
            return _cifar(name, root)
        case "caltech101":
            folder = _require(root, "caltech101/101_ObjectCategories")
            return _of_files(list_tree(folder, without=("BACKGROUND_Google",)))
        case "imagenette":
            return _of_files(_imagenette(_require(root, "imagenette2")))
        case "flowers102":
            return _of_files(_flowers(_require(root, "flowers-102")))
        case "pets":
            return _of_files(_pets(_require(root, "oxford-iiit-pet")))
        case "voc2007" | "voc2012":
            folder = _require(root, f"VOCdevkit/{name.upper()}")
            return _of_files(list_voc(folder, *_VOC_SETS[name]))


def _require(root: Path, below: str) -> Path:
    if not (root / below).is_dir():
        raise ConfigError(
            f"source (={root}) holds no {below}; give the folder that holds it, as torchvision "
            "lays it out."
        )
    return root / below


def _of_files(listing: Listing) -> KnownSet:
    def side(files: Sequence[LabelledFile]) -> Side:
        return Side(len(files), lambda: read_listed(files))

    sides = {name: side(files) for name, files in listing.sides.items()}
    return KnownSet(listing.classes, sides, listing.notes)


def _imagenette(folder: Path) -> Listing:
    from torchvision.datasets import Imagenette

    listing = list_tree(folder)
    there = Imagenette(folder.parent, split="train")
    names = {wnid: words[0] for wnid, words in zip(there.wnids, there.classes, strict=True)}
    classes = tuple(names.get(wnid, wnid) for wnid in listing.classes)
    return Listing(classes, listing.sides, listing.notes)


def _flowers(folder: Path) -> Listing:
    from torchvision.datasets import Flowers102

    labels = _read_mat(folder / "imagelabels.mat", "labels")
    sides: dict[str, list[LabelledFile]] = {}
    for side, names in _FLOWERS.items():
        sides[side] = []
        for name in names:
            for number in _read_mat(folder / "setid.mat", name).tolist():
                path = folder / "jpg" / f"image_{number:05}.jpg"
                label = int(labels[number - 1]) - 1
                sides[side].append(_listed(path, label, folder, {"official_set": name}))
    return Listing(tuple(Flowers102.classes), sides)


def _read_mat(path: Path, key: str) -> NDArray[np.int64]:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        found: NDArray[np.int64] = loadmat(path)[key].ravel().astype(np.int64)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"labels (={path}) cannot be read ({type(error).__name__}: {error}); get the file anew."
        ) from None
    return found


def _pets(folder: Path) -> Listing:
    names: dict[int, str] = {}
    sides: dict[str, list[LabelledFile]] = {}
    for side, file in (("train", "trainval.txt"), ("test", "test.txt")):
        sides[side] = []
        for image_id, label in _read_pairs(folder / "annotations" / file):
            names[label] = image_id.rpartition("_")[0].replace("_", " ")
            path = folder / "images" / f"{image_id}.jpg"
            sides[side].append(_listed(path, label - 1, folder, {}))
    if sorted(names) != list(range(1, len(names) + 1)):
        raise ConfigError(
            f"labels (={folder / 'annotations'}) do not count from 1; get the files anew."
        )
    return Listing(tuple(names[label] for label in sorted(names)), sides)


def _read_pairs(path: Path) -> list[tuple[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        return [(image_id, int(label)) for image_id, label, *_ in fields]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"labels (={path}) cannot be read ({type(error).__name__}: {error}); get the file anew."
        ) from None


def _listed(path: Path, label: int, folder: Path, about: Mapping[str, Any]) -> LabelledFile:
    return LabelledFile(path, label, str(path.relative_to(folder)), about)


def _cifar(name: str, root: Path) -> KnownSet:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:  # Checks the MD5 of every file before unpickling.
        sets = {"train": kind(root, train=True), "test": kind(root, train=False)}
    except RuntimeError:
        raise ConfigError(
            f"source (={root}) holds no {kind.base_folder}, or its files are damaged; give the "
            "folder that holds it, as torchvision lays it out."
        ) from None
    sides = {side: _cifar_side(side, found.data, found.targets) for side, found in sets.items()}
    return KnownSet(tuple(sets["train"].classes), sides)


def _cifar_side(side: str, images: NDArray[np.uint8], labels: Sequence[int]) -> Side:
    def read() -> Iterator[Packed]:
        for row, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            sink = io.BytesIO()
            Image.fromarray(pixels).save(sink, "PNG")
            yield Packed("", sink.getvalue(), label, f"{side}/{row}")

    return Side(len(images), lambda: name_packed(read()))
