"""Rows of tables into inputs: where the image stands, and what is said of it."""

import base64
import binascii
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.crawl.find import as_local_file
from pipeline.crawl.inputs import Chunk
from pipeline.crawl.item import Item, Reason
from pipeline.crawl.magic import is_image
from pipeline.crawl.names import is_unsafe
from pipeline.crawl.opened import InputError, fetch
from pipeline.crawl.plain_files import read_local
from pipeline.crawl.samples import describe
from pipeline.remote.location import is_remote, join, scheme_of

IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    *("image_bytes", "bytes", "data", "content"),
)
"""That hold an image's bytes; the first that is there is taken."""
PATH_COLUMNS = ("image_path", "file_name", "filename", "file_path", "path", "file", "image")
"""That hold its path, relative to the table."""
_LABELS = ("label", "labels", "class")
_LONGEST_PATH = 4096
"""Characters; what is longer is no path."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where to look in a row."""

    images: tuple[str, ...]
    """Bytes, or a mapping with `bytes` and `path`; the first that is not null is taken."""
    paths: tuple[str, ...] = ()
    """Paths below the folder of the table; taken where there are no bytes."""
    has_base64: bool = False
    """Whether bytes are written in base64, and a text that is none is a path."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of numbers -> what they mean."""


def read_row(
    chunk: Chunk, number: int, row: Mapping[str, Any], columns: Columns, max_bytes: int
) -> Item:
    """Make the item of a row, whose name is its number in the table."""
    name = f"{chunk.name(chunk.files[0])}!{number}"
    result = _find_image(chunk, row, columns, max_bytes)
    about = describe(_said(row, columns))
    if isinstance(result, bytes):
        return Item(name, result, **about)
    return Item(name, problem=result, **about)


def _said(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Leave out the image, and give the label its name."""
    said = {key: value for key, value in row.items() if key not in columns.images}
    classes = columns.classes
    column = next((key for key in (*classes, *_LABELS) if key in said), None)
    if column is not None:
        label = said.pop(column)
        names = classes.get(column, ())
        if isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        said["label"] = label
    return said


def _find_image(
    chunk: Chunk, row: Mapping[str, Any], columns: Columns, max_bytes: int
) -> bytes | Reason:
    for key in (*columns.images, *columns.paths):
        found = _resolve(row.get(key), has_base64=columns.has_base64 and key in columns.images)
        if isinstance(found, str):
            return _read_path(chunk, found, max_bytes)
        if found is not None:
            return found if 0 < len(found) <= max_bytes else "too_big" if found else "empty"
    return "empty"


def _resolve(value: object, *, has_base64: bool) -> bytes | str | None:
    """Return the bytes of an image, or its path, or None."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if data is not None:
            return _resolve(data, has_base64=has_base64)
        value, has_base64 = value.get("path"), False
    if isinstance(value, str) and value:
        data = from_base64(value) if has_base64 else None
        return value if data is None else data
    return value if isinstance(value, bytes) else None


def from_base64(text: str) -> bytes | None:
    """Decode an image; None where the text is rather a path."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if is_image(data) or len(text) > _LONGEST_PATH else None


def _read_path(chunk: Chunk, path: str, max_bytes: int) -> bytes | Reason:
    """Read a file that a table names; it must lie below the table."""
    if is_unsafe(path) or scheme_of(path) or len(path) > _LONGEST_PATH or "\0" in path:
        return "bad_record"
    folder = chunk.location(chunk.files[0]).rpartition("/")[0]
    try:
        if is_remote(folder):
            return _read_remote(join(folder, path), max_bytes)
        about = os.lstat(f"{folder}/{path}")
        return read_local(f"{folder}/{path}", as_local_file("", about), max_bytes)
    except InputError as error:
        return error.reason
    except (OSError, ValueError):
        return "unreadable"


def _read_remote(url: str, max_bytes: int) -> bytes | Reason:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        (fault,) = fetch([(url, None, target)])
        if fault is not None:
            return "unreadable"
        if (size := target.stat().st_size) > max_bytes:
            return "too_big"
        return target.read_bytes() if size else "empty"
