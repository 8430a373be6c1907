"""What became of the images that are on no side of a transfer, in words."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.shards.pack import LEDGER_NAME
from training.transfer.pool import Pool
from training.transfer.split import Sides

_MAX_NAMED = 10  # names in a note


def packing_notes(place: str) -> list[str]:
    """Count what packing left out, or stored anew, by the ledger beside the shards."""
    try:
        lines = (Path(place) / LEDGER_NAME).read_text(encoding="utf-8").splitlines()
    except OSError:  # A URL, or shards that others made.
        return []
    words = {"quarantined": "can not be used", "encoded": "are stored anew as PNG"}
    every = (json.loads(line) for line in lines)
    rows = [row for row in every if row["verdict"] in words]  # A duplicate has no reason.
    kinds = Counter((row["verdict"], row["reason"]) for row in rows)
    first = {(row["verdict"], row["reason"]): row["path"] for row in reversed(rows)}
    return [
        f"{count} images {words[verdict]}: {reason} ({first[verdict, reason]})"
        for (verdict, reason), count in sorted(kinds.items())
    ]


def count_notes(pool: Pool, sides: Sides) -> list[str]:
    """Say why images of the shards are on no side; each is counted once."""
    is_left = np.ones(len(pool.keys), np.bool_)
    is_left[sides.train] = is_left[sides.test] = False
    counts = {
        "have no label": int((~pool.is_labelled).sum()),
        "are copies of another": int((pool.is_copy & pool.is_labelled).sum()),
    }
    is_left &= pool.usable
    if pool.labels is not None:
        used = np.unique(pool.labels[sides.train])
        of_others = is_left & ~np.isin(pool.labels, used)
        names = [pool.classes[label] for label in np.unique(pool.labels[of_others])]
        what = f"are of classes with too few images on a side: {_shorten(names)}"
        counts[what] = int(of_others.sum())
        is_left &= ~of_others
    counts["are more than the limits allow"] = int(is_left.sum())
    return [f"{count} images {what}" for what, count in counts.items() if count]


def class_notes(pool: Pool, sides: Sides) -> list[str]:
    """Name classes that no image shows."""
    if pool.labels is not None:
        there = np.unique(pool.targets[pool.is_labelled])
        empty = [name for number, name in enumerate(pool.classes) if number not in there]
        return [f"classes without an image: {_shorten(empty)}"] if empty else []
    notes = []
    for side, rows in (("train", sides.train), ("test", sides.test)):
        shown = (pool.targets[rows] == 1).any(axis=0)
        absent = [name for name, is_there in zip(pool.classes, shown, strict=True) if not is_there]
        if absent:
            notes.append(f"classes that no image to {side} on shows: {_shorten(absent)}")
    return notes


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
