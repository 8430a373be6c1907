"""A place of labelled images into shards: as they are, or packed on arrival, once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed, pack
from pipeline.remote.location import is_remote
from pipeline.shards.manifest import FILE_NAME
from training.transfer.images.tree import LabelledFile, Listing, list_tree, list_voc, read_listed
from training.transfer.job import Progress


@dataclass(frozen=True, slots=True)
class Prepared:
    """Labelled shards, with or without a split."""

    places: dict[str, str]
    """Path or URL of the shards: "train" and "test", or "all"."""
    notes: tuple[str, ...] = ()
    """What was odd about the files, a line each."""


def prepare(
    location: str | Path, folder: Path, *, sets: tuple[str, str], on_progress: Progress
) -> Prepared:
    """Find out what lies at a location, and pack it where it is no shards.

    Shards are a manifest or its folder, as a path or a URL, or a folder with the shards train and
    test in it. A folder in VOC layout and a tree with a folder for each class are packed into
    `folder`/data, under a name with the hash of what they hold: done once, and done again where
    something changed.

    Args:
        location: Path or URL.
        folder: Where packed shards go.
        sets: Image sets of a VOC layout to learn from and to test on.
        on_progress: Called while files are read and packed.

    Raises:
        ConfigError: Nothing of this kind is there, or a file cannot be read.
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
    """Pack every side of a listing that is not there yet; returns where each lies.

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
    """Name what a listing holds: 16 hex digits of every file's name, content, and what is said."""
    state = xxhash.xxh3_64(repr(listing.classes).encode())
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
