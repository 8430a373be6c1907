"""What images in shards show, where an image may show several classes."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.shards.store import Store
from training.transfer.images.voc_annotation import AnnotationError, read_annotation

# Shapes: N images, C classes.


Shown = dict[str, int]
"""By class: 1 shown, -1 shown but difficult."""


def has_several_classes(store: Store) -> bool:
    """Whether the samples have VOC annotations; asks the first one only."""
    return read_shown(store.members(0), "0") is not None


def read_voc_shards(
    store: Store, classes: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.bool_]]:
    """Read the targets of all samples.

    A sample says what it shows in "shown" of its .json ({"cat": 1, "dog": -1}), as `tessera data
    get` writes it; else in "objects" there ([{"name": "cat", "difficult": 0}]); else in its .xml.

    Args:
        store: Shards with such samples.
        classes: Names in the order of their numbers; all that occur, where they are left out.

    Returns:
        Targets, int64 (N, C): 1 shown, 0 not shown, -1 shown but difficult; the names of the
        classes; and bool (N,), whether the sample has an annotation that can be read.

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
        for name, told in (shown or {}).items():
            row[columns[name]] = told
    return targets, names, np.array([shown is not None for shown in found], np.bool_)


def read_shown(members: dict[str, bytes], sample: str) -> Shown | None:
    """Read what one sample shows, None where it has no annotation that can be read."""
    about = _parse(members.get("json", b""))
    shown = about.get("shown")
    if isinstance(shown, dict) and all(told in (1, -1) for told in shown.values()):
        return {str(name): int(told) for name, told in shown.items()}
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
    """A class is difficult where all of its objects are."""
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
