"""Tables as sources: a row of a Parquet or Arrow file, or a line of JSON, is an input."""

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
from pipeline.ingest.sources.files import (
    InputError,
    download,
    open_archive,
    read_local,
    size_problem,
)
from pipeline.ingest.sources.find import as_local_file, on_filesystem
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import escape, is_unsafe
from pipeline.ingest.sources.samples import annotate, parse_json_object
from pipeline.remote.location import is_remote, join, redact_text, redact_url, scheme_of

_IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    *("image_bytes", "bytes", "data", "content"),
)
"""Columns of encoded images; the first that is present is used."""
_PATH_COLUMNS = ("image_path", "file_name", "filename", "file_path", "path", "file", "image")
"""Columns of paths relative to the table."""
_LABELS = ("label", "labels", "class")
_MAX_PATH = 4096
"""Characters; anything longer is no path."""
_BATCH_ROWS = 16
"""Rows in memory."""
_MAX_OTHER_BYTES = 2**20
"""Bytes of a line of JSON on top of its image."""
_STEP = 2**20
_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError)
_types = pa.types


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the image of a row is."""

    images: tuple[str, ...]
    """Columns of bytes, or of mappings with `bytes` and `path`; the first non-null one is used."""
    paths: tuple[str, ...] = ()
    """Columns of paths relative to the table's folder; used where there are no bytes."""
    has_base64: bool = False
    """Whether images are base64; text that is not is a path."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Integer label column -> class names."""


_LINE_COLUMNS = _Columns(_IMAGE_COLUMNS, _PATH_COLUMNS, has_base64=True)


# Parquet and Arrow


def cut_parquet(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a Parquet file between row groups into parts of about `chunk_inputs` rows.

    Raises:
        ConfigError: The file is damaged, has no row, or no column of images.
    """
    with _inspected(whole) as opened:
        table = pq.ParquetFile(opened)
        _check_columns(whole, table.schema_arrow, table.metadata.num_rows)
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
    """Check whether an Arrow file can be read; raises ConfigError as `cut_parquet` does."""
    with _inspected(whole) as opened:
        schema, batches = _open_arrow(opened)
        _check_columns(whole, schema, next((len(batch) for batch in batches if len(batch)), 0))


def read_parquet(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read rows in order; the rest of a damaged row group is one problem."""
    number = chunk.row
    try:
        with open_archive(chunk) as opened:
            table = pq.ParquetFile(opened)
            columns, names = _find_columns(table.schema_arrow), _names_to_read(table.schema_arrow)
            stop = table.num_row_groups if chunk.stop is None else chunk.stop
            for group in range(chunk.first, stop):
                next_group = number + table.metadata.row_group(group).num_rows
                batches = table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names)
                for row in _rows(batches):
                    yield _read_row(chunk, number, row, columns, max_bytes)
                    number += 1
                number = next_group
    except InputError as error:
        yield chunk.problem(number, error.reason)
    except _ERRORS:
        yield chunk.problem(number, "bad_record")


def read_arrow(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read rows in order, up to a damaged place."""
    number = 0
    try:
        with open_archive(chunk) as opened:
            schema, batches = _open_arrow(opened)
            columns, names = _find_columns(schema), _names_to_read(schema)
            slices = (
                batch.select(names).slice(start, _BATCH_ROWS)
                for batch in batches
                for start in range(0, len(batch), _BATCH_ROWS)
            )
            for row in _rows(slices):
                yield _read_row(chunk, number, row, columns, max_bytes)
                number += 1
    except InputError as error:
        yield chunk.problem(number, error.reason)
    except _ERRORS:
        yield chunk.problem(number, "bad_record")


def _rows(batches: Iterator[Any]) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of batches; a single None stands for all from a damaged place on."""
    try:
        for batch in batches:
            names = batch.schema.names
            values = (_column_values(batch.column(i)) for i in range(len(names)))
            for row in zip(*values, strict=True):
                yield dict(zip(names, row, strict=True))
    except _ERRORS:
        yield None


def _column_values(column: Any) -> list[Any]:
    """Convert a column to Python; text that is not UTF-8 is escaped, dates become text."""
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


def _open_arrow(opened: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    """Open an Arrow file, or an Arrow stream such as Hugging Face's."""
    start = opened.read(6)
    opened.seek(0)
    if start != b"ARROW1":
        stream = pa.ipc.open_stream(opened)
        return stream.schema, iter(stream)
    table = pa.ipc.open_file(opened)
    return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))


@contextmanager
def _inspected(whole: Chunk) -> Iterator[IO[bytes]]:
    """Open a table for inspection; what is wrong with it is reported to the user at once."""
    url, name = whole.location(), escape(redact_url(whole.location()))
    try:
        if is_remote(url):
            with on_filesystem(url, lambda system, path: system.open(path, "rb")) as opened:
                yield opened
        else:
            with open_archive(whole) as opened:
                yield opened
    except InputError as error:
        raise ConfigError(f"table (={name}) is {error.reason}; check the file.") from None
    except ConfigError:
        raise
    except _ERRORS as error:
        text = redact_text(" ".join(str(error).split()))[:200]
        raise ConfigError(f"table (={name}) is damaged: {text}. Copy it again.") from None


def _check_columns(whole: Chunk, schema: Any, num_rows: int) -> None:
    columns, name = _find_columns(schema), escape(redact_url(whole.location()))
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not (columns.images or columns.paths):
        raise ConfigError(
            f"table (={name}) has no column of images, only {listed or 'none at all'}; name one "
            "image (bytes) or file_name (paths)."
        )
    if not num_rows:
        raise ConfigError(f"table (={name}) has no row, only columns {listed}; exclude it.")


def _find_columns(schema: Any) -> _Columns:
    """Find images and classes in an Arrow schema.

    Images are a column of bytes, a column of structs with `bytes` (Hugging Face's `Image`), or one
    of paths. Of several candidates, the one that Hugging Face's metadata declares as an image
    wins, then the one whose name comes first in `_IMAGE_COLUMNS`.

    Returns:
        The columns; `images` and `paths` are empty where there are no images.
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
        is_declared = features.get(name, {}).get("_type") == "Image"
        known = _IMAGE_COLUMNS.index(name) if name in _IMAGE_COLUMNS else len(_IMAGE_COLUMNS)
        return not is_declared, known

    images.sort(key=rank)
    is_clear = len(images) == 1 or (images and rank(images[0]) < (True, len(_IMAGE_COLUMNS)))
    if is_clear:
        return _Columns(tuple(images[:1]), classes=classes)
    declared = [name for name in texts if not rank(name)[0]]
    paths = declared or [name for name in _PATH_COLUMNS if name in texts]
    return _Columns((), tuple(paths[:1]), classes=classes)


def _names_to_read(schema: Any) -> list[str]:
    """List the columns to read: images and scalars, but no other bytes."""
    columns = _find_columns(schema)
    return [
        field.name
        for field in schema
        if field.name in (*columns.images, *columns.paths) or _is_scalar(field.type)
    ]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read Hugging Face's description of the columns; empty where it cannot be parsed."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
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


def _is_scalar(kind: Any) -> bool:
    if _types.is_dictionary(kind):
        return _is_scalar(kind.value_type)
    is_number = _types.is_integer(kind) or _types.is_floating(kind) or _types.is_boolean(kind)
    is_date = _types.is_temporal(kind) or _types.is_decimal(kind)
    return bool(_is_text(kind) or is_number or is_date)


# JSON lines


def cut_lines(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a local file into runs of `chunk_inputs` lines, for which it is read once.

    Raises:
        ConfigError: It has no line, or the first one names no image.
    """
    if is_remote(whole.root):
        return [whole]
    parts: list[Chunk] = []
    first, row, count, offset = 0, 0, 0, 0
    try:
        with open_archive(whole) as opened:
            _check_first_line(whole, opened)
            for size, is_row in _line_sizes(opened):
                offset += size
                count += is_row
                if count == chunk_inputs:
                    part = replace(whole, first=first, stop=offset, row=row, num_inputs=count)
                    parts.append(part)
                    first, row, count = offset, row + count, 0
    except InputError as error:
        raise ConfigError(
            f"table (={escape(whole.location())}) is {error.reason}; check the file."
        ) from None
    if count:
        parts.append(replace(whole, first=first, stop=offset, row=row, num_inputs=count))
    return parts


def read_lines(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read lines in order; one that is no JSON object is a problem, blank ones are skipped."""
    offset, number = chunk.first, chunk.row
    limit = max_bytes * 4 // 3 + _MAX_OTHER_BYTES
    try:
        with open_archive(chunk) as opened:
            opened.seek(offset)
            while (chunk.stop is None or offset < chunk.stop) and (line := opened.readline(limit)):
                size = len(line) + _skip_rest(opened, line, limit)
                if size > limit:
                    yield Item.make(f"{chunk.archive}!{number}", "too_big")
                    number += 1
                elif line.strip():
                    row = parse_json_object(line)
                    yield _read_row(chunk, number, row, _LINE_COLUMNS, max_bytes)
                    number += 1
                offset += size
    except InputError as error:
        yield chunk.problem(number, error.reason)
    except OSError:
        yield chunk.problem(number, "unreadable")


def _skip_rest(opened: IO[bytes], line: bytes, limit: int) -> int:
    """Skip the rest of a line that is too long; returns its bytes."""
    skipped = 0
    while len(line) == limit and not line.endswith(b"\n"):
        piece = opened.readline(_STEP)
        skipped += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return skipped


def _line_sizes(opened: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """Yield the bytes of each line and whether it is not blank; no line is in memory whole."""
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


def _check_first_line(whole: Chunk, opened: IO[bytes]) -> None:
    name = escape(redact_url(whole.location()))
    line = b""
    while (piece := opened.readline(2**27)) and not line:
        line = piece.strip()
    if not line:
        raise ConfigError(f"table (={name}) has no line; exclude it.")
    row = parse_json_object(line)
    if row is not None and not {*_IMAGE_COLUMNS, *_PATH_COLUMNS} & set(row):
        raise ConfigError(
            f"table (={name}) has no image in its first line, only {', '.join(map(str, row))}; "
            "name one image (base64) or file_name (paths)."
        )


# Rows


def _read_row(
    chunk: Chunk, number: int, row: Mapping[str, Any] | None, columns: _Columns, max_bytes: int
) -> Item:
    """Make the item of a row, which is named by its number; None stands for a damaged row."""
    if row is None:
        return chunk.problem(number, "bad_record")
    result = _find_image(chunk, row, columns, max_bytes)
    return Item.make(f"{chunk.archive}!{number}", result, **annotate(_other_fields(row, columns)))


def _other_fields(row: Mapping[str, Any], columns: _Columns) -> dict[str, Any]:
    """Return what a row holds beside the image, a class number replaced by its name."""
    fields = {key: value for key, value in row.items() if key not in columns.images}
    classes = columns.classes
    column = next((key for key in (*classes, *_LABELS) if key in fields), None)
    if column is not None:
        label = fields.pop(column)
        names = classes.get(column, ())
        if isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        fields["label"] = label
    return fields


def _find_image(
    chunk: Chunk, row: Mapping[str, Any], columns: _Columns, max_bytes: int
) -> bytes | Reason:
    for key in (*columns.images, *columns.paths):
        value = _resolve(row.get(key), has_base64=columns.has_base64 and key in columns.images)
        if isinstance(value, str):
            return _read_path(chunk, value, max_bytes)
        if value is not None:
            return size_problem(len(value), max_bytes) or value
    return "empty"


def _resolve(value: object, *, has_base64: bool) -> bytes | str | None:
    """Return the bytes of an image, or its path, or None."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if data is not None:
            return _resolve(data, has_base64=has_base64)
        value, has_base64 = value.get("path"), False
    if isinstance(value, str) and value:
        data = _from_base64(value) if has_base64 else None
        return value if data is None else data
    return value if isinstance(value, bytes) else None


def _from_base64(text: str) -> bytes | None:
    """Decode an image; None where the text is rather a path."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if is_image(data) or len(text) > _MAX_PATH else None


def _read_path(chunk: Chunk, path: str, max_bytes: int) -> bytes | Reason:
    """Read a file that a table names; it must lie below the table's folder."""
    if is_unsafe(path) or scheme_of(path) or len(path) > _MAX_PATH or "\0" in path:
        return "bad_record"
    folder = chunk.location().rpartition("/")[0]
    try:
        if is_remote(folder):
            return _read_remote(join(folder, path), max_bytes)
        status = os.lstat(f"{folder}/{path}")
        return read_local(f"{folder}/{path}", as_local_file("", status), max_bytes)
    except InputError as error:
        return error.reason
    except (OSError, ValueError):
        return "unreadable"


def _read_remote(url: str, max_bytes: int) -> bytes | Reason:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        (fault,) = download([(url, None, target)])
        if fault is not None:
            return fault
        return size_problem(target.stat().st_size, max_bytes) or target.read_bytes()
