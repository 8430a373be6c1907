"""What lies beside images in folders: captions, classes, and Hugging Face's metadata files."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.ingest.sources.columns import FILE_NAME, LINE_COLUMNS, column_values, label_column
from pipeline.ingest.sources.inputs import File
from pipeline.ingest.sources.samples import annotate, parse_json_object, read_sidecars

_IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
)
_SIDECARS = ("cls", "json", "txt")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NAN = frozenset(("", "nan", "NaN"))
"""Cells of a CSV that hold nothing."""
_is_report = re.compile(r"(\d+)(?:_stats\.json|\.parquet)").fullmatch
"""What img2dataset writes beside the folder of a shard."""


def attach(
    files: Sequence[File], folders: Sequence[str], above: File | None
) -> tuple[list[File], File | None]:
    """Tell inputs from what is said of them, and attach it to them as their notes.

    A .cls, .json or .txt of an image's name belongs to the image, and a metadata.jsonl, .csv or
    .parquet to all images in its folder and below.

    Args:
        files: All files of one folder.
        folders: Names of its folders.
        above: The metadata file that holds for the folders above.

    Returns:
        The inputs, and the metadata file that holds for the folders below.
    """
    split = {file: _split(file.path) for file in files}
    images = {stem for stem, ending in split.values() if ending in _IMAGES}
    notes: dict[str, list[File]] = {}
    metadata: dict[str, File] = {}
    inputs: list[File] = []
    for file, (stem, ending) in split.items():
        name = file.path.rpartition("/")[2]
        report = _is_report(name)
        if ending in _SIDECARS and stem in images:
            notes.setdefault(stem, []).append(file)
        elif name in _METADATA:
            metadata[name] = file
        elif report is None or report[1] not in folders:
            inputs.append(file)
    found = next((metadata[name] for name in _METADATA if name in metadata), above)
    shared = [] if found is None else [found]
    noted = [
        file._replace(notes=(*notes.get(split[file][0], ()), *shared))
        if split[file][1] in _IMAGES
        else file
        for file in inputs
    ]
    return noted, found


def is_metadata(note: File) -> bool:
    """Tell whether a note is a metadata file, which is shared by many images."""
    return note.path.rpartition("/")[2] in _METADATA


def read_notes(file: File, contents: Mapping[File, bytes]) -> dict[str, Any]:
    """Read what the sidecars of an image say of it; empty where it has none."""
    texts = {_split(note.path)[1]: contents[note] for note in file.notes if note in contents}
    return read_sidecars(texts) if texts else {}


def read_row(file: File, metadata: File, path: Path) -> dict[str, Any]:
    """Read what a metadata file says of an image; empty where it says nothing.

    Args:
        file: The image.
        metadata: The file as listed.
        path: Where it can be read.
    """
    folder = metadata.path.rpartition("/")[0]
    row = _rows(path, metadata.size, metadata.stamp).get(file.path[len(folder) + 1 :])
    if row is None:
        return {}
    fields = json.loads(row)
    column = label_column(fields)
    if column is not None:
        fields["label"] = fields.pop(column)
    return annotate({key: value for key, value in fields.items() if key not in LINE_COLUMNS.paths})


@lru_cache(2)
def _rows(path: Path, size: int | None, stamp: str) -> dict[str, bytes]:
    """Read a metadata file: JSON of each row by its path; only scalars matter."""
    del size, stamp  # They tell one version of the file from another.
    rows: dict[str, bytes] = {}
    for row in _parse(path):
        if isinstance(name := row.get(FILE_NAME), str):
            rows.setdefault(name.removeprefix("./"), json.dumps(row, default=str).encode())
    return rows


def _parse(path: Path) -> list[dict[str, Any]]:
    if path.name.endswith(".parquet"):
        table = pq.read_table(path, partitioning=None)
        columns = {
            name: column_values(column.combine_chunks())
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]
    text = path.read_bytes().decode("utf-8-sig", "backslashreplace")
    if path.name.endswith(".csv"):
        table = csv.DictReader(io.StringIO(text, newline=""))
        return [{k: None if v in _NAN else v for k, v in row.items() if k} for row in table]
    lines = (parse_json_object(line.encode()) for line in text.split("\n") if line.strip())
    return [row for row in lines if row is not None]


def _split(path: str) -> tuple[str, str]:
    """Split the name of a file at its last dot; the ending in lower case."""
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    return stem, ending.lower()
