"""One annotation of PASCAL VOC: XML as written, then boxes as they are used."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError

# Shapes: n objects of the image.


_MAX_BYTES = 16 * 2**20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_EXAMPLES = 3


class AnnotationError(ValueError):
    """An annotation that is no XML of an image."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What an annotation says, nothing changed."""

    size: tuple[int, int] | None
    """Width and height in px, None where it says none."""
    names: tuple[str, ...]
    """Class of each object."""
    corners: NDArray[np.float64]
    """(n, 4), xmin, ymin, xmax, ymax: 1-based pixels, the last one inside; NaN where there is no
    number."""
    difficult: NDArray[np.bool_]
    """(n,)."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """The objects of an image that can be used."""

    boxes: NDArray[np.float32]
    """(n, 4), left, top, right, bottom in px from 0, right and bottom excluded."""
    labels: NDArray[np.int64]
    """(n,), class numbers."""
    difficult: NDArray[np.bool_]
    """(n,)."""


@dataclass
class Problems:
    """What was odd: how often, and where for example."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        known = self.examples.setdefault(kind, [])
        if len(known) < _EXAMPLES and where not in known:
            known.append(where)

    def update(self, others: "Problems") -> None:
        """Add those of another part of a set."""
        self.counts.update(others.counts)
        for kind, places in others.examples.items():
            known = self.examples.setdefault(kind, [])
            known += places[: _EXAMPLES - len(known)]


def read_annotation(data: bytes, source: str) -> Annotation:
    """Read the XML of one image; `source` names it.

    An XML that declares a document type or entities is refused before it is parsed: entities that
    name each other fill the memory, and others name files.

    Raises:
        ConfigError: It declares a document type or entities, or is larger than 16 MiB.
        AnnotationError: It is no XML in UTF-8, or its root is no annotation.
    """
    if len(data) > _MAX_BYTES:
        raise ConfigError(
            f"annotation (={source}) has {len(data)} bytes, more than {_MAX_BYTES}; remove it."
        )
    try:
        text = data.decode("utf-8-sig")  # Given text, the parser looks at no declared encoding.
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
    objects = root.findall("object")  # Direct children: a person's parts are none.
    return Annotation(
        size=_size(root),
        names=tuple((thing.findtext("name") or "").strip() for thing in objects),
        corners=np.array([_corners(thing) for thing in objects], np.float64).reshape(-1, 4),
        difficult=np.array([_flag(thing, "difficult") for thing in objects], np.bool_),
    )


def usable_boxes(
    annotation: Annotation, classes: Sequence[str], size: tuple[int, int], where: str
) -> tuple[Boxes, Problems]:
    """Turn what an annotation says into boxes, and count what is odd.

    The devkit's pixels are 1-based and its last pixel is inside the box. A box here is
    (xmin - 1, ymin - 1, xmax, ymax): from 0, its right and bottom edges excluded, so that
    right - left is the devkit's xmax - xmin + 1, and so is the overlap of two boxes.

    Counted, and left out: `unreadable_box` (a corner is no number), `unknown_class` (not among
    `classes`), `zero_area` (xmax is not above xmin, or ymax not above ymin, as written),
    `box_outside` (no pixel of it is in the image). Counted, and cut at the edge of the image:
    `box_clipped`. Counted only: `difficult`, `size_differs` (the annotation gives the image another
    size).

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
    """Return the box, None where there is nothing to use, and the problem with it."""
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
