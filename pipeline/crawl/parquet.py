"""Parquet and Arrow files as sources: a row is an input."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ConfigError
from pipeline.crawl.columns import column_values, find_columns, plain_names
from pipeline.crawl.find import ask
from pipeline.crawl.inputs import Chunk
from pipeline.crawl.item import Item
from pipeline.crawl.names import escape, place_name
from pipeline.crawl.opened import InputError, open_archive
from pipeline.crawl.rows import Columns, read_row
from pipeline.remote.location import is_remote, shown

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
    url, name = whole.location(file), escape(shown(whole.location(file)))
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
    columns, name = find_columns(schema), escape(shown(whole.location(whole.files[0])))
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not (columns.images or columns.paths):
        raise ConfigError(
            f"table (={name}) has no column of images, only {listed or 'none at all'}; name one "
            "image (bytes) or file_name (paths)."
        )
    if not num_rows:
        raise ConfigError(f"table (={name}) has no row, only columns {listed}; leave it out.")
