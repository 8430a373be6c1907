"""VOC annotations: the XML of one image, the boxes to use, and what samples in shards show."""

import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.shards.store import Store

# Shapes: n objects of an image, N images, C classes.


_MAX_BYTES = 16 * 2**20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_EXAMPLES = 3

Shown = dict[str, int]
"""Classes an image shows: 1 shown, -1 shown but difficult."""


class AnnotationError(ValueError):
    """An annotation that is not the XML of an image."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Content of an annotation, unchanged."""

    size: tuple[int, int] | None
    """Width and height in px, None where missing."""
    names: tuple[str, ...]
    """Class of each object."""
    corners: NDArray[np.float64]
    """(n, 4), xmin, ymin, xmax, ymax: 1-based pixels, the last one inclusive; NaN where not a
    number."""
    difficult: NDArray[np.bool_]
    """(n,)."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """The usable objects of an image."""

    boxes: NDArray[np.float32]
    """(n, 4), left, top, right, bottom in px from 0, right and bottom exclusive."""
    labels: NDArray[np.int64]
    """(n,), class numbers."""
    difficult: NDArray[np.bool_]
    """(n,)."""


@dataclass
class Problems:
    """Counts of what was odd, with a few examples each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Count one problem."""
        self.counts[kind] += 1
        known = self.examples.setdefault(kind, [])
        if len(known) < _EXAMPLES and where not in known:
            known.append(where)

    def update(self, other: "Problems") -> None:
        """Add the problems of another part of a set."""
        self.counts.update(other.counts)
        for kind, places in other.examples.items():
            known = self.examples.setdefault(kind, [])
            known += places[: _EXAMPLES - len(known)]


def read_annotation(data: bytes, source: str) -> Annotation:
    """Read the XML of one image; `source` names it.

    XML that declares a document type or entities is refused before it is parsed: entities can
    expand until memory is full, or read files.

    Raises:
        ConfigError: It declares a document type or entities, or is larger than 16 MiB.
        AnnotationError: It is not XML in UTF-8, or its root is not an annotation.
    """
    if len(data) > _MAX_BYTES:
        raise ConfigError(
            f"annotation (={source}) has {len(data)} bytes, more than {_MAX_BYTES}; remove it."
        )
    try:
        text = data.decode("utf-8-sig")  # Given text, the parser ignores a declared encoding.
    except UnicodeDecodeError:
        raise AnnotationError("it is not UTF-8") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(
            f"annotation (={source}) declares a document type or entities, which no VOC annotation "
            "needs and which can be an attack; remove the declaration or the file."
        )
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:  # ValueError: a null character.
        raise AnnotationError(f"it is no XML: {error}") from None
    if root.tag != "annotation":
        raise AnnotationError(f"its root is {root.tag}, not annotation")
    objects = root.findall("object")  # Direct children only: the parts of a person are not objects.
    return Annotation(
        size=_size(root),
        names=tuple((thing.findtext("name") or "").strip() for thing in objects),
        corners=np.array([_corners(thing) for thing in objects], np.float64).reshape(-1, 4),
        difficult=np.array([_flag(thing, "difficult") for thing in objects], np.bool_),
    )


def usable_boxes(
    annotation: Annotation, classes: Sequence[str], size: tuple[int, int], where: str
) -> tuple[Boxes, Problems]:
    """Convert an annotation into boxes, and count what is odd.

    The devkit's pixels are 1-based and its last pixel is inclusive. A box here is
    (xmin - 1, ymin - 1, xmax, ymax): 0-based with exclusive right and bottom edges, so that
    right - left is the devkit's xmax - xmin + 1, and overlaps agree.

    Counted and excluded: `unreadable_box` (a corner is not a number), `unknown_class` (not among
    `classes`), `zero_area` (xmax <= xmin or ymax <= ymin as written), `box_outside` (entirely
    outside the image). Counted and clipped to the image: `box_clipped`. Counted only: `difficult`,
    `size_differs` (the annotation gives the image another size).

    Args:
        annotation: As written.
        classes: Names, in the order of their numbers.
        size: Width and height of the image in px, as stored.
        where: Name of the image, for the examples.
    """
    problems = Problems()
    if annotation.size is not None and annotation.size != size:
        problems.add("size_differs", where)
    numbers = {name: number for number, name in enumerate(classes)}
    boxes, labels, difficult = [], [], []
    things = zip(annotation.names, annotation.corners, annotation.difficult, strict=True)
    for name, corners, is_difficult in things:
        box, problem = _box(corners, size)
        problem = problem if name in numbers else "unknown_class"
        if problem:
            problems.add(problem, f"{where} {name}".strip())
        if box is None or name not in numbers:
            continue
        if is_difficult:
            problems.add("difficult", where)
        boxes.append(box)
        labels.append(numbers[name])
        difficult.append(is_difficult)
    return Boxes(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult, np.bool_),
    ), problems


def _box(
    corners: NDArray[np.float64], size: tuple[int, int]
) -> tuple[tuple[float, ...] | None, str | None]:
    """Return the box, None if unusable, and its problem, if any."""
    xmin, ymin, xmax, ymax = (float(v) for v in corners)
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        return None, "unreadable_box"
    if xmax <= xmin or ymax <= ymin:
        return None, "zero_area"
    width, height = size
    box = (xmin - 1, ymin - 1, xmax, ymax)
    clipped = (
        max(box[0], 0.0),
        max(box[1], 0.0),
        min(xmax, float(width)),
        min(ymax, float(height)),
    )
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, "box_outside"
    return clipped, None if clipped == box else "box_clipped"


def _size(root: ET.Element) -> tuple[int, int] | None:
    width, height = _number(root.findtext("size/width")), _number(root.findtext("size/height"))
    if not (math.isfinite(width) and math.isfinite(height)):
        return None
    return int(width), int(height)


def _corners(thing: ET.Element) -> list[float]:
    return [_number(thing.findtext(f"bndbox/{corner}")) for corner in _CORNERS]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _flag(thing: ET.Element, name: str) -> bool:
    return (thing.findtext(name) or "0").strip() not in ("", "0")


def has_several_classes(store: Store) -> bool:
    """Whether the samples have VOC annotations; looks at the first one only."""
    return read_shown(store.members(0), "0") is not None


def read_voc_shards(
    store: Store, classes: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.bool_]]:
    """Read the targets of all samples.

    The targets of a sample are in "shown" of its .json ({"cat": 1, "dog": -1}), as `tessera data
    get` writes it; else in "objects" there ([{"name": "cat", "difficult": 0}]); else in its .xml.

    Args:
        store: Shards with such samples.
        classes: Names in the order of their numbers. Default: all that occur.

    Returns:
        Targets, int64 (N, C): 1 shown, 0 not shown, -1 shown but difficult; the names of the
        classes; and bool (N,), whether the sample has a readable annotation.

    Raises:
        ConfigError: An annotation names a class that is not among `classes`, or is malformed.
    """
    num = store.manifest.num_samples
    found = [read_shown(store.members(sample_id), str(sample_id)) for sample_id in range(num)]
    known = {name for shown in found for name in shown or ()}
    names = tuple(sorted(known)) if classes is None else tuple(classes)
    if known - set(names):
        raise ConfigError(
            f"class (={min(known - set(names))}) of an annotation is not among the classes of its "
            f"manifest ({', '.join(names)}); pack the set again."
        )
    columns = {name: column for column, name in enumerate(names)}
    targets = np.zeros((num, len(names)), np.int64)
    for row, shown in zip(targets, found, strict=True):
        for name, target in (shown or {}).items():
            row[columns[name]] = target
    return targets, names, np.array([shown is not None for shown in found], np.bool_)


def read_shown(members: dict[str, bytes], sample: str) -> Shown | None:
    """Read the classes one sample shows, None where it has no readable annotation."""
    about = _parse(members.get("json", b""))
    shown = about.get("shown")
    if isinstance(shown, dict) and all(target in (1, -1) for target in shown.values()):
        return {str(name): int(target) for name, target in shown.items()}
    things = about.get("objects")
    if isinstance(things, list) and all(isinstance(t, dict) and "name" in t for t in things):
        return _merge([(str(t["name"]), bool(t.get("difficult"))) for t in things])
    if "xml" not in members:
        return None
    try:
        annotation = read_annotation(members["xml"], f"of sample {sample}")
    except AnnotationError:
        return None
    pairs = zip(annotation.names, annotation.difficult.tolist(), strict=True)
    return _merge([(name, difficult) for name, difficult in pairs if name])


def _merge(things: Sequence[tuple[str, bool]]) -> Shown:
    """Merge objects: a class is difficult where all of its objects are."""
    shown: Shown = {}
    for name, is_difficult in things:
        shown[name] = max(shown.get(name, -1), -1 if is_difficult else 1)
    return shown


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        about = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
