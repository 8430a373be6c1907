"""Parquet and Arrow files as sources: a row is an input."""

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ConfigError
from pipeline.ingest.gate.formats import is_image
from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.files import InputError, fetch, open_archive, read_local
from pipeline.ingest.sources.find import as_local_file, ask
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import escape, is_unsafe, place_name
from pipeline.ingest.sources.samples import describe
from pipeline.remote.location import is_remote, join, redact_url, scheme_of

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


_COLUMNS = Columns(IMAGE_COLUMNS, PATH_COLUMNS, has_base64=True)
_MAX_NOTES = 2**20  # bytes of a line beside its image
_STEP = 2**20


def cut_lines(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a local file into runs of `chunk_inputs` lines, for which it is read once.

    Raises:
        ConfigError: It has no line, or the first one names no image.
    """
    file = whole.files[0]
    if is_remote(whole.root):
        return [whole]
    parts: list[Chunk] = []
    first, row, count, offset = 0, 0, 0, 0
    try:
        with open_archive(whole.location(file), file) as opened:
            _check_first(whole, opened)
            for size, is_row in _line_sizes(opened):
                offset += size
                count += is_row
                if count == chunk_inputs:
                    parts.append(_part(whole, first, offset, row, count))
                    first, row, count = offset, row + count, 0
    except InputError as error:
        raise ConfigError(
            f"table (={escape(whole.location(file))}) is {error.reason}; look at the file."
        ) from None
    return [*parts, _part(whole, first, offset, row, count)] if count else parts


def read_lines(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read lines in order; one that is no JSON object is a problem, a blank one is nothing."""
    file = chunk.files[0]
    archive, offset, number = chunk.name(file), chunk.first, chunk.row
    most = max_bytes * 4 // 3 + _MAX_NOTES
    try:
        with open_archive(chunk.location(file), file) as opened:
            opened.seek(offset)
            while (chunk.stop is None or offset < chunk.stop) and (line := opened.readline(most)):
                size = len(line) + _skip_rest(opened, line, most)
                if line.strip() or size > most:
                    yield _read(chunk, number, line if size <= most else None, max_bytes)
                    number += 1
                offset += size
    except InputError as error:
        yield Item(place_name(archive, number), problem=error.reason)
    except OSError:
        yield Item(place_name(archive, number), problem="unreadable")


def _part(whole: Chunk, first: int, stop: int, row: int, count: int) -> Chunk:
    return replace(whole, first=first, stop=stop, row=row, num_inputs=count)


def _read(chunk: Chunk, number: int, line: bytes | None, max_bytes: int) -> Item:
    archive = chunk.name(chunk.files[0])
    if line is None:
        return Item(f"{archive}!{number}", problem="too_big")
    row = _parse(line)
    if row is None:
        return Item(place_name(archive, number), problem="bad_record")
    return read_row(chunk, number, row, _COLUMNS, max_bytes)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _skip_rest(opened: IO[bytes], line: bytes, most: int) -> int:
    """Pass over what is left of a line that is too long; returns its bytes."""
    skipped = 0
    while len(line) == most and not line.endswith(b"\n"):
        piece = opened.readline(_STEP)
        skipped += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return skipped


def _line_sizes(opened: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """Yield the bytes of each line, and whether it holds anything; no line is held whole."""
    opened.seek(0)
    size, is_row = 0, False
    while piece := opened.readline(_STEP):
        size += len(piece)
        is_row = is_row or bool(piece.strip())
        if piece.endswith(b"\n"):
            yield size, is_row
            size, is_row = 0, False
    if size:
        yield size, is_row


def _check_first(whole: Chunk, opened: IO[bytes]) -> None:
    name = escape(redact_url(whole.location(whole.files[0])))
    line = b""
    while (piece := opened.readline(2**27)) and not line:
        line = piece.strip()
    if not line:
        raise ConfigError(f"table (={name}) has no line; leave it out.")
    row = _parse(line)
    if row is not None and not {*IMAGE_COLUMNS, *PATH_COLUMNS} & set(row):
        raise ConfigError(
            f"table (={name}) has no image in its first line, only {', '.join(map(str, row))}; "
            "name one image (base64) or file_name (paths)."
        )


_types = pa.types


def find_columns(schema: Any) -> Columns:
    """Find images and classes in an Arrow schema.

    Images are a column of bytes, a column of structs with `bytes` (Hugging Face's `Image`), or one
    of paths. Where several could be meant, it is the one that Hugging Face's metadata call so,
    then the one whose name comes first in `IMAGE_COLUMNS`.

    Returns:
        The columns; `images` and `paths` are empty where nothing holds images.
    """
    features = _features(schema)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    classes = {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }

    def rank(name: str) -> tuple[bool, int]:
        is_meant = features.get(name, {}).get("_type") == "Image"
        known = IMAGE_COLUMNS.index(name) if name in IMAGE_COLUMNS else len(IMAGE_COLUMNS)
        return not is_meant, known

    images.sort(key=rank)
    is_clear = len(images) == 1 or (images and rank(images[0]) < (True, len(IMAGE_COLUMNS)))
    if is_clear:
        return Columns(tuple(images[:1]), classes=classes)
    meant = [name for name in texts if not rank(name)[0]]
    paths = meant or [name for name in PATH_COLUMNS if name in texts]
    return Columns((), tuple(paths[:1]), classes=classes)


def plain_names(schema: Any) -> list[str]:
    """List the columns to read: images, and values without parts; no other bytes."""
    columns = find_columns(schema)
    return [
        field.name
        for field in schema
        if field.name in (*columns.images, *columns.paths) or _is_plain(field.type)
    ]


def column_values(column: Any) -> list[Any]:
    """Read a column into Python; texts that are not UTF-8 are escaped, dates become text."""
    kind = column.type
    if _types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if _types.is_temporal(kind) or _types.is_decimal(kind):
        return list(column.cast(pa.string()).to_pylist())
    if _is_text(kind):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "backslashreplace") for text in raw]
    return list(column.to_pylist())


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read what Hugging Face says of the columns; nothing where that is not to be understood."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    if _types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _is_bytes(fields["bytes"])
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(_types.is_binary(kind) or _types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return bool(_types.is_string(kind) or _types.is_large_string(kind))


def _is_plain(kind: Any) -> bool:
    if _types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_number = _types.is_integer(kind) or _types.is_floating(kind) or _types.is_boolean(kind)
    is_date = _types.is_temporal(kind) or _types.is_decimal(kind)
    return bool(_is_text(kind) or is_number or is_date)


_AT_ONCE = 16
"""Rows in memory."""
_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError)


def cut_parquet(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a Parquet file between row groups into parts of about `chunk_inputs` rows.

    Raises:
        ConfigError: The file is damaged, has no row, or no column of images.
    """
    with _looked_at(whole) as opened:
        table = pq.ParquetFile(opened)
        _check(whole, table.schema_arrow, table.metadata.num_rows)
        groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    if is_remote(whole.root):
        return [replace(whole, num_inputs=sum(groups))]
    parts: list[Chunk] = []
    first, row, count = 0, 0, 0
    for number, rows in enumerate(groups, 1):
        count += rows
        if count >= chunk_inputs or number == len(groups):
            parts.append(replace(whole, first=first, stop=number, row=row, num_inputs=count))
            first, row, count = number, row + count, 0
    return parts


def check_arrow(whole: Chunk) -> None:
    """Look whether an Arrow file can be read; raises ConfigError as `cut_parquet` does."""
    with _looked_at(whole) as opened:
        schema, batches = _open_arrow(opened)
        _check(whole, schema, next((len(batch) for batch in batches if len(batch)), 0))


def read_parquet(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read rows in order; the rest of a row group that is damaged is one problem."""
    file = chunk.files[0]
    archive, number = chunk.name(file), chunk.row
    try:
        with open_archive(chunk.location(file), file) as opened:
            table = pq.ParquetFile(opened)
            columns, names = find_columns(table.schema_arrow), plain_names(table.schema_arrow)
            stop = table.num_row_groups if chunk.stop is None else chunk.stop
            for group in range(chunk.first, stop):
                following = number + table.metadata.row_group(group).num_rows
                batches = table.iter_batches(_AT_ONCE, row_groups=[group], columns=names)
                for row in _rows(batches):
                    yield _item(chunk, number, row, columns, max_bytes)
                    number += 1
                number = following
    except InputError as error:
        yield Item(place_name(archive, number), problem=error.reason)
    except _ERRORS:
        yield Item(place_name(archive, number), problem="bad_record")


def read_arrow(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read rows in order, up to a damaged place."""
    file = chunk.files[0]
    archive, number = chunk.name(file), 0
    try:
        with open_archive(chunk.location(file), file) as opened:
            schema, batches = _open_arrow(opened)
            columns, names = find_columns(schema), plain_names(schema)
            slices = (
                batch.select(names).slice(start, _AT_ONCE)
                for batch in batches
                for start in range(0, len(batch), _AT_ONCE)
            )
            for row in _rows(slices):
                yield _item(chunk, number, row, columns, max_bytes)
                number += 1
    except InputError as error:
        yield Item(place_name(archive, number), problem=error.reason)
    except _ERRORS:
        yield Item(place_name(archive, number), problem="bad_record")


def _item(
    chunk: Chunk, number: int, row: dict[str, Any] | None, columns: Columns, max_bytes: int
) -> Item:
    if row is None:
        return Item(place_name(chunk.name(chunk.files[0]), number), problem="bad_record")
    return read_row(chunk, number, row, columns, max_bytes)


def _rows(batches: Iterator[Any]) -> Iterator[dict[str, Any] | None]:
    """Take batches apart into rows; None in place of all that follow damage."""
    try:
        for batch in batches:
            names = batch.schema.names
            values = (column_values(batch.column(i)) for i in range(len(names)))
            for row in zip(*values, strict=True):
                yield dict(zip(names, row, strict=True))
    except _ERRORS:
        yield None


def _open_arrow(opened: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    """Open an Arrow file, or a stream of Arrow such as Hugging Face's."""
    start = opened.read(6)
    opened.seek(0)
    if start != b"ARROW1":
        stream = pa.ipc.open_stream(opened)
        return stream.schema, iter(stream)
    table = pa.ipc.open_file(opened)
    return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))


@contextmanager
def _looked_at(whole: Chunk) -> Iterator[IO[bytes]]:
    """Open a table to look at its columns; what is wrong with it is the user's to know now."""
    file = whole.files[0]
    url, name = whole.location(file), escape(redact_url(whole.location(file)))
    try:
        if is_remote(url):
            with ask(url, lambda system, path: system.open(path, "rb")) as opened:
                yield opened
        else:
            with open_archive(url, file) as opened:
                yield opened
    except InputError as error:
        raise ConfigError(f"table (={name}) is {error.reason}; look at the file.") from None
    except ConfigError:
        raise
    except _ERRORS as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"table (={name}) is damaged: {text}. Copy it again.") from None


def _check(whole: Chunk, schema: Any, num_rows: int) -> None:
    columns, name = find_columns(schema), escape(redact_url(whole.location(whole.files[0])))
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not (columns.images or columns.paths):
        raise ConfigError(
            f"table (={name}) has no column of images, only {listed or 'none at all'}; name one "
            "image (bytes) or file_name (paths)."
        )
    if not num_rows:
        raise ConfigError(f"table (={name}) has no row, only columns {listed}; leave it out.")
