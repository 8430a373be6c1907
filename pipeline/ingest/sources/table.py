"""Tables as sources: a row of a Parquet or Arrow file, or a line of JSON, is an input."""

import base64
import binascii
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ConfigError
from pipeline.ingest.gate.formats import is_image
from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.columns import (
    FILE_NAME,
    GENERAL_COLUMNS,
    IMAGE_COLUMNS,
    LINE_COLUMNS,
    PATH_COLUMNS,
    Columns,
    column_values,
    find_columns,
    label_column,
)
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

_MAX_PATH = 4096
"""Characters; anything longer is no path."""
_BATCH_ROWS = 16
"""Rows in memory."""
_MAX_OTHER_BYTES = 2**20
"""Bytes of a line of JSON on top of its image."""
_STEP = 2**20
_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError)


# Parquet and Arrow


def cut_parquet(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a Parquet file between row groups into parts of about `chunk_inputs` rows.

    Raises:
        ConfigError: The file is damaged, has no row, or no column of images.
    """
    with _inspected(whole) as opened:
        table = pq.ParquetFile(opened)
        columns = _check_columns(whole, table.schema_arrow, table.metadata.num_rows)
        groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        is_known = not columns.holds_lists
    if is_remote(whole.root):
        return [replace(whole, num_inputs=sum(groups) if is_known else None)]
    parts: list[Chunk] = []
    first, row, count = 0, 0, 0
    for number, rows in enumerate(groups, 1):
        count += rows
        if count >= chunk_inputs or number == len(groups):
            known = count if is_known else None
            parts.append(replace(whole, first=first, stop=number, row=row, num_inputs=known))
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
            columns = _columns_of(chunk, table.schema_arrow)
            stop = table.num_row_groups if chunk.stop is None else chunk.stop
            for group in range(chunk.first, stop):
                next_group = number + table.metadata.row_group(group).num_rows
                batches = table.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=list(columns.read)
                )
                for row in _rows(batches):
                    yield from _read_row(chunk, number, row, columns, max_bytes)
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
            columns = _columns_of(chunk, schema)
            slices = (
                batch.select(list(columns.read)).slice(start, _BATCH_ROWS)
                for batch in batches
                for start in range(0, len(batch), _BATCH_ROWS)
            )
            for row in _rows(slices):
                yield from _read_row(chunk, number, row, columns, max_bytes)
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
            values = (column_values(batch.column(i)) for i in range(len(names)))
            for row in zip(*values, strict=True):
                yield dict(zip(names, row, strict=True))
    except _ERRORS:
        yield None


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


def _check_columns(whole: Chunk, schema: Any, num_rows: int) -> Columns:
    columns, name = _columns_of(whole, schema), escape(redact_url(whole.location()))
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not (columns.images or columns.paths):
        raise ConfigError(
            f"table (={name}) has no column of images, only {listed or 'none at all'}; name one "
            "image (bytes) or file_name (paths)."
        )
    if not num_rows:
        raise ConfigError(f"table (={name}) has no row, only columns {listed}; exclude it.")
    return columns


def _columns_of(chunk: Chunk, schema: Any) -> Columns:
    name = escape(redact_url(chunk.location()))
    return find_columns(schema, name, with_label=chunk.labels)


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
                    yield from _read_row(chunk, number, row, LINE_COLUMNS, max_bytes)
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
    if row is not None and not {*IMAGE_COLUMNS, *PATH_COLUMNS} & set(row):
        raise ConfigError(
            f"table (={name}) has no image in its first line, only {', '.join(map(str, row))}; "
            "name one image (base64) or file_name (paths)."
        )


# Rows


def _read_row(
    chunk: Chunk, number: int, row: Mapping[str, Any] | None, columns: Columns, max_bytes: int
) -> Iterator[Item]:
    """Make the items of a row, which is named by its number; None stands for a damaged row."""
    if row is None:
        yield chunk.problem(number, "bad_record")
        return
    annotations = annotate(other_fields(row, columns), columns.names)
    annotations["notes"] = (*annotations["notes"], *columns.notes)
    name = f"{chunk.archive}!{number}"
    for i, content in enumerate(_find_images(chunk, row, columns, max_bytes), 1):
        yield Item.make(name if i == 1 else f"{name}#{i}", content, **annotations)


def other_fields(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return what a row holds beside the image, its label as `label`."""
    fields = {key: value for key, value in row.items() if key not in columns.images}
    column = columns.label or label_column(fields)
    if column is not None and column in fields:
        fields["label"] = fields.pop(column)
    return fields


def _find_images(
    chunk: Chunk, row: Mapping[str, Any], columns: Columns, max_bytes: int
) -> Iterator[bytes | Reason]:
    """Yield the images of a row, of which only a list has more than one, or why there is none."""
    for key in (*columns.images, *columns.paths):
        value = row.get(key)
        several = value if isinstance(value, list) and not columns.has_base64 else [value]
        is_path = not (columns.has_base64 and _is_other_text(key, row))
        how = {"has_base64": columns.has_base64 and key in columns.images, "is_path": is_path}
        found = [one for one in (_resolve(one, **how) for one in several) if one is not None]
        for one in found:
            if isinstance(one, str):
                yield _read_path(chunk, one, max_bytes)
            else:
                yield size_problem(len(one), max_bytes) or one
        if found:
            return
    yield "empty"


def _is_other_text(key: str, row: Mapping[str, Any]) -> bool:
    """Tell whether text in a column of images is no path, because another column is one."""
    if isinstance(row.get(FILE_NAME), str):
        return key in IMAGE_COLUMNS
    return key in GENERAL_COLUMNS and any(isinstance(row.get(one), str) for one in PATH_COLUMNS)


def _resolve(value: object, *, has_base64: bool, is_path: bool) -> bytes | str | None:
    """Return the bytes of an image, or its path, or None."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if data is not None:
            return _resolve(data, has_base64=has_base64, is_path=is_path)
        value, has_base64, is_path = value.get("path"), False, True
    if isinstance(value, str) and value:
        data = _from_base64(value) if has_base64 else None
        if not is_path:
            return data if data is not None and is_image(data) else None
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
