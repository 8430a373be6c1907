"""Read files that are one input each."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.crawl.inputs import Chunk, File
from pipeline.crawl.item import Item, Reason
from pipeline.crawl.names import escape, folder_label
from pipeline.crawl.opened import InputError, check_same, fetch, open_local
from pipeline.remote.location import is_remote

_AT_ONCE = 16
"""Remote files copied at a time."""


def read_files(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the files of a chunk in order.

    A local file is the one that was listed if size and time of change are the same; of a remote
    one the size is compared: to ask for more would cost a second request for each.
    """
    if is_remote(chunk.root):
        for start in range(0, len(chunk.files), _AT_ONCE):
            yield from _read_remote(chunk, chunk.files[start : start + _AT_ONCE], max_bytes)
        return
    for file in chunk.files:
        try:
            yield _item(chunk, file, read_local(chunk.location(file), file, max_bytes))
        except InputError as error:
            yield _item(chunk, file, error.reason)


def read_local(location: str, file: File, max_bytes: int) -> bytes:
    """Read a whole file; raises InputError."""
    with open_local(location, file, follow=False) as opened:
        assert file.size is not None
        if (reason := _by_size(file.size, max_bytes)) is not None:
            raise InputError(reason)
        try:
            data = opened.read(file.size)
        except OSError:
            raise InputError("unreadable") from None
        check_same(opened.fileno(), file)
    if len(data) != file.size:
        raise InputError("changed")
    return data


def _read_remote(chunk: Chunk, files: Sequence[File], max_bytes: int) -> Iterator[Item]:
    outcome: dict[File, Reason | None] = {
        file: None if file.size is None else _by_size(file.size, max_bytes) for file in files
    }
    with tempfile.TemporaryDirectory() as folder:
        targets = {file: Path(folder) / str(number) for number, file in enumerate(files)}
        wanted = [file for file in files if outcome[file] is None]
        faults = fetch([(chunk.location(file), file.size, targets[file]) for file in wanted])
        outcome.update(zip(wanted, faults, strict=True))
        for file in files:
            reason = outcome[file] or _by_size(targets[file].stat().st_size, max_bytes)
            yield _item(chunk, file, reason or targets[file].read_bytes())


def _by_size(size: int, max_bytes: int) -> Reason | None:
    if size > max_bytes:
        return "too_big"
    return None if size else "empty"


def _item(chunk: Chunk, file: File, result: bytes | Reason) -> Item:
    name = chunk.name(file)
    if not isinstance(result, bytes):
        return Item(name, problem=result, label=folder_label(escape(file.path)))
    return Item(name, result, label=folder_label(escape(file.path)))
