"""Open what was listed, and notice when it is no longer what it was."""

import asyncio
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.config import ConfigError
from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.find import as_file, ask
from pipeline.ingest.sources.inputs import Chunk, File
from pipeline.ingest.sources.names import escape, folder_label
from pipeline.remote.fetch import FetchConfig, Fetcher, FetchError, run
from pipeline.remote.location import FileRequest, is_remote

_FETCH = FetchConfig()
_GONE = (FileNotFoundError, NotADirectoryError)


class InputError(Exception):
    """An input that cannot be had."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@contextmanager
def open_archive(location: str, file: File) -> Iterator[IO[bytes]]:
    """Open a local file, or a copy of a remote one that lasts as long as the block.

    Copies lie in the folder for temporary files (TMPDIR).

    Raises:
        InputError: It is gone or another one than was listed, or cannot be read.
    """
    if not is_remote(location):
        with open_local(location, file, follow=True) as opened:
            yield opened
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "archive"
        _check_remote(location, file)
        (fault,) = fetch([(location, file.size, target)])
        if fault is not None:
            raise InputError(fault)
        with target.open("rb") as opened:
            yield opened


@contextmanager
def open_local(location: str, file: File, *, follow: bool) -> Iterator[IO[bytes]]:
    """Open a regular file; a pipe that took its place is never waited for.

    Raises:
        InputError: It is gone or another one than was listed, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        number = os.open(location, flags)
    except OSError as error:
        is_link = not follow and Path(location).is_symlink()
        gone = is_link or isinstance(error, _GONE)
        raise InputError("changed" if gone else "unreadable") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InputError("changed")
    with open(number, "rb") as opened:  # noqa: PTH123 - a number has no path.
        check_same(number, file)
        yield opened


def check_same(number: int, file: File) -> None:
    """Compare an open file with what was listed; raises InputError."""
    about = os.fstat(number)
    if (about.st_size, str(about.st_mtime_ns)) != (file.size, file.stamp):
        raise InputError("changed")


def fetch(wanted: Sequence[tuple[str, int | None, Path]]) -> list[Reason | None]:
    """Copy URLs to files, all at a time, with tries as everywhere.

    Args:
        wanted: URL, size in bytes where it is known, and where the copy goes.

    Returns:
        None for each that is there and whole, else why it is not.
    """

    async def fetch_all() -> list[BaseException | object]:
        fetcher = Fetcher(_FETCH)
        try:
            downloads = (
                fetcher.download(FileRequest(url, n, None), path) for url, n, path in wanted
            )
            return await asyncio.gather(*downloads, return_exceptions=True)
        finally:
            await fetcher.close()

    return [_fault(result) for result in run(fetch_all())]


def _fault(result: BaseException | object) -> Reason | None:
    match result:
        case FetchError(kind="missing" | "corrupt"):  # It has another size.
            return "changed"
        case FetchError() | OSError() | ConfigError():
            return "unreadable"
        case BaseException():
            raise result
        case _:
            return None


def _check_remote(url: str, file: File) -> None:
    def look(system: object, path: str) -> File:
        system.invalidate_cache()  # type: ignore[attr-defined]
        return as_file("", system.info(path))  # type: ignore[attr-defined]

    try:
        now = ask(url, look)
    except ConfigError:
        return  # Fetching tells why, after some tries.
    if (now.size, now.stamp) != (file.size, file.stamp):
        raise InputError("changed")


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
