"""Files of JSON lines as sources: a line is an input."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from pipeline.config import ConfigError
from pipeline.crawl.inputs import Chunk
from pipeline.crawl.item import Item
from pipeline.crawl.names import escape, place_name
from pipeline.crawl.opened import InputError, open_archive
from pipeline.crawl.rows import IMAGE_COLUMNS, PATH_COLUMNS, Columns, read_row
from pipeline.remote.location import is_remote, shown

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
    name = escape(shown(whole.location(whole.files[0])))
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
