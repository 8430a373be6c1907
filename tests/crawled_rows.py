"""Rows of parts without the images: what several files of tests plan with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.near.hash import WORDS
from pipeline.ingest.parts import SCHEMA


def content(number: int) -> bytes:
    """A content hash that is the same for equal numbers, and spread evenly."""
    return np.random.default_rng(number).bytes(16)


def look(number: int) -> bytes:
    """Near words that are the same for equal numbers, and far apart for others."""
    return np.random.default_rng([1, number]).bytes(8 * WORDS)


def row(name, number, outcome="accepted", *, source="s", **more):
    """A row of a part; `number` decides the content, and the look where it is not given."""
    reason = {"accepted": None, "quarantined": "truncated", "filtered": "min_side"}[outcome]
    return {
        "name": name,
        "source": source,
        "outcome": outcome,
        "reason": reason,
        "content_hash": content(number),
        "part": bytes(16),
        "stored_hash": number,
        "offset": 0,
        "size": 1000 + number % 7,
        "format": "JPEG",
        "width": 64,
        "height": 48,
        "stored_width": 64,
        "stored_height": 48,
        "as_is": True,
        "notes": [],
        "near_words": look(number) if outcome == "accepted" else None,
        **more,
    }


def write_tables(folder: Path, rows, num_tables=1):
    """Write rows to tables as parts have them; returns their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(num_tables):
        path = folder / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[number::num_tables], SCHEMA), path)
        paths.append(path)
    return paths
