"""Members of an archive into samples: which are inputs, which say something about them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

NoteReason = Literal[
    "apple_double",  # ._name and what lies in __MACOSX/: a Mac's attributes of a file
    "ds_store",  # a Mac's view of a folder
    "webdataset_meta",  # __name__: a writer's notes, which WebDataset passes over, too
    "not_read",  # beside an image with notes, and of a kind that is not read: npy, seg.png
    "too_big",  # more than MAX_NOTE_BYTES
    "too_many",  # far from its image in a compressed tar, beyond MAX_FAR_BYTES of such notes
    "unreadable",  # a .json that is no JSON object, or a member that cannot be read
]
"""Why a member that is no input says nothing about an image."""

MAX_NOTE_BYTES = 2**24
"""Larger notes are not read."""
MAX_FAR_BYTES = 2**28
"""Of notes that are far from their images in a compressed tar: they are in memory together."""

IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
)
NOTES = frozenset(("cls", "json", "txt"))

_find_junk = re.compile(
    r"(?P<apple_double>(?:^|/)(?:\._[^/]*$|__MACOSX/))|(?P<ds_store>(?:^|/)\.DS_Store$)"
    r"|(?P<webdataset_meta>^__[^/]*__(?:/|$))"
).search
_JUNK_MARKS = ("._", "__", ".DS_Store")


class Input(NamedTuple):
    """A member that is an input, with the members that say something about it."""

    place: int
    """Of the member."""
    notes: dict[str, int]
    """Extension -> place of the note: cls, json, txt."""


@dataclass(slots=True)
class Sample:
    """The members of one key, in order; they need not be adjacent."""

    key: str
    """What precedes the first dot; empty for a member that stands alone."""
    endings: list[str] = field(default_factory=list)
    """What follows the first dot, in lower case."""
    places: list[int] = field(default_factory=list)
    """Positions in the archive."""


@dataclass(slots=True)
class Gathered:
    """What the members of an archive are; each is in a sample or in `junk`."""

    samples: list[Sample] = field(default_factory=list)
    """In order of their first members."""
    junk: list[tuple[int, NoteReason]] = field(default_factory=list)
    """Place and reason of what no sample holds."""
    returns: int | None = None
    """The first member whose key was left before, or that repeats an ending of its sample."""

    def inputs(self) -> list[Input]:
        """List the inputs in order of the archive."""
        found = []
        for sample in self.samples:
            places = sample.places
            for shape in resolve(tuple(sample.endings)).inputs:
                notes = {ending: places[i] for ending, i in shape.notes}
                found.append(Input(places[shape.image], notes))
        found.sort()
        return found

    def input_places(self) -> list[int]:
        """List where the inputs are, in order of the archive."""
        return sorted(
            sample.places[one.image]
            for sample in self.samples
            for one in resolve(tuple(sample.endings)).inputs
        )

    def unread(self) -> Iterator[int]:
        """List the members beside an image with notes that are neither."""
        for sample in self.samples:
            for i in resolve(tuple(sample.endings)).unread:
                yield sample.places[i]


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and ending, both empty without a key.

    >>> split_name("a.b/001.seg.PNG"), split_name("a/.jpg"), split_name("README")
    (('a.b/001', 'seg.png'), ('', ''), ('', ''))
    """
    last_part = name.rfind("/") + 1
    dot = name.find(".", last_part)
    return (name[:dot], name[dot + 1 :].lower()) if dot > last_part else ("", "")


def gather(names: Sequence[str | None]) -> Gathered:
    """Join the members of one key, wherever they are in the archive.

    A member that repeats an ending of its key begins a new sample of that key, to which what
    follows belongs. One without a key or a name stands alone and splits nothing.

    Args:
        names: Of all members in order; None for what has no usable name.
    """
    found = Gathered()
    text = "\n".join(name for name in names if name)
    if any(mark in text for mark in _JUNK_MARKS):
        found.junk = list(_junk(names))
    junk = {place for place, _ in found.junk}
    latest: dict[str, Sample] = {}
    sample = Sample("")
    for place, name in enumerate(names):
        if junk and place in junk:
            continue
        key, ending = split_name(name) if name else ("", "")
        if not key:
            found.samples.append(Sample("", [""], [place]))
            continue
        if key != sample.key:
            earlier = latest.get(key)
            if earlier is not None and found.returns is None:
                found.returns = place
            sample = earlier or _begin(found, latest, key)
        if ending in sample.endings:
            found.returns = place if found.returns is None else found.returns
            sample = _begin(found, latest, key)
        sample.endings.append(ending)
        sample.places.append(place)
    return found


def _begin(found: Gathered, latest: dict[str, Sample], key: str) -> Sample:
    latest[key] = sample = Sample(key)
    found.samples.append(sample)
    return sample


def _junk(names: Iterable[str | None]) -> Iterator[tuple[int, NoteReason]]:
    for place, name in enumerate(names):
        if name and (match := _find_junk(name)):
            assert match.lastgroup is not None
            yield place, match.lastgroup  # type: ignore[misc]


def borders(gathered: Gathered) -> list[int]:
    """List the places before which an archive can be cut: each sample is on one side."""
    found, reached = [], -1
    for sample in gathered.samples:
        if sample.places[0] > reached:
            found.append(sample.places[0])
        reached = max(reached, sample.places[-1])
    return found


class ShapedInput(NamedTuple):
    """An input of a sample, by positions in the sample."""

    image: int
    notes: tuple[tuple[str, int], ...]
    """Extension and position."""


class Shape(NamedTuple):
    """What the members of a sample are, by positions in the sample."""

    inputs: tuple[ShapedInput, ...]
    unread: tuple[int, ...]


@lru_cache(4096)
def resolve(endings: tuple[str, ...]) -> Shape:
    """Tell which members of a sample are inputs, and which notes each has.

    A note belongs to the images whose names equal its own up to the last dot, as in cat.1.jpg and
    cat.1.txt; else, if its name has only one dot, to every image of the sample. Of a sample with
    notes, other members are not read, and neither are images such as 1.seg.png beside 1.jpg, whose
    ending names a role; an ending that begins with a digit is a part of the name. Without notes or
    images every member is an input.

    >>> [one.notes for one in resolve(("jpg", "txt", "1.jpg", "1.txt")).inputs]
    [(('txt', 1),), (('txt', 3),)]
    """
    split = [ending.rpartition(".")[::2] for ending in endings]  # ("1", "txt"), ("", "jpg")
    images = [i for i, (_, last) in enumerate(split) if last in IMAGES]
    stems = {split[i][0] for i in images}
    notes = [
        i for i, (stem, last) in enumerate(split) if last in NOTES and (not stem or stem in stems)
    ]
    if not (images and notes):
        return Shape(tuple(ShapedInput(i, ()) for i in range(len(endings))), ())
    owners = {split[i][0] for i in notes}
    if "" in stems:
        images = [i for i in images if not _names_role(split[i][0]) or split[i][0] in owners]
    inputs = tuple(
        ShapedInput(
            i,
            tuple(
                (split[n][1], n)
                for n in notes
                if split[n][0] == split[i][0] or (not split[n][0] and "" not in stems)
            ),
        )
        for i in images
    )
    # An image's own notes come last: they win where the sample's say the same.
    ordered = tuple(
        ShapedInput(one.image, tuple(sorted(one.notes, key=lambda note: bool(split[note[1]][0]))))
        for one in inputs
    )
    used = {n for one in ordered for _, n in one.notes} | set(images)
    return Shape(ordered, tuple(i for i in range(len(endings)) if i not in used))


def _names_role(stem: str) -> bool:
    return bool(stem) and not stem[0].isdigit()
