"""Open and read listed files, and notice when they have changed since."""

import asyncio
import csv
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipeline.config import ConfigError
from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.beside import is_metadata, read_notes, read_row
from pipeline.ingest.sources.find import as_file, on_filesystem
from pipeline.ingest.sources.inputs import Chunk, File
from pipeline.ingest.sources.names import escape, folder_label
from pipeline.remote.fetch import FetchConfig, Fetcher, FetchError, run
from pipeline.remote.location import FileRequest, is_remote

_FETCH = FetchConfig()
_GONE = (FileNotFoundError, NotADirectoryError)
_UNREAD = "note_unreadable"
"""Said of an image beside which a caption, class or metadata file cannot be read."""
_NOTE_ERRORS = (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException)
_NAME_LENGTH = 80
_NUM_CONCURRENT = 16
"""Remote files downloaded at a time."""


class InputError(Exception):
    """An input that cannot be read."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


def read_files(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the files of a chunk in order.

    A local file is compared with the listing by size and modification time, a remote one by size
    only: anything more would cost a second request per file.
    """
    if is_remote(chunk.root):
        for start in range(0, len(chunk.files), _NUM_CONCURRENT):
            yield from _read_remote(chunk, chunk.files[start : start + _NUM_CONCURRENT], max_bytes)
        return
    for file in chunk.files:
        try:
            result: bytes | Reason = read_local(chunk.location(file), file, max_bytes)
        except InputError as error:
            result = error.reason
        yield _item(chunk, file, result, {note: Path(chunk.location(note)) for note in file.notes})


def read_local(location: str, file: File, max_bytes: int) -> bytes:
    """Read a whole file; raises InputError."""
    with _open_local(location, file, follow=False) as opened:
        assert file.size is not None
        if (reason := size_problem(file.size, max_bytes)) is not None:
            raise InputError(reason)
        try:
            data = opened.read(file.size)
        except OSError:
            raise InputError("unreadable") from None
        _check_unchanged(opened.fileno(), file)
    if len(data) != file.size:
        raise InputError("changed")
    return data


def size_problem(size: int, max_bytes: int) -> Reason | None:
    """Return why an input of `size` bytes is not read, None if it is."""
    if size > max_bytes:
        return "too_big"
    return None if size else "empty"


def _read_remote(chunk: Chunk, files: Sequence[File], max_bytes: int) -> Iterator[Item]:
    notes = {note for file in files for note in file.notes}
    problems: dict[File, Reason | None] = {
        file: None if file.size is None else size_problem(file.size, max_bytes) for file in files
    }
    with tempfile.TemporaryDirectory() as folder:
        targets = {
            file: Path(folder) / f"{number}-{Path(file.path).name[-_NAME_LENGTH:]}"
            for number, file in enumerate([*files, *notes])
        }
        wanted = [file for file in files if problems[file] is None]
        asked = [*wanted, *notes]
        faults = download([(chunk.location(file), file.size, targets[file]) for file in asked])
        problems.update(zip(asked, map(_since_listed, faults), strict=True))
        for file in files:
            problem = problems[file] or size_problem(targets[file].stat().st_size, max_bytes)
            there = {note: targets[note] for note in file.notes if problems[note] is None}
            yield _item(chunk, file, problem or targets[file].read_bytes(), there)


def _item(chunk: Chunk, file: File, result: bytes | Reason, there: Mapping[File, Path]) -> Item:
    """Make the item of a file; `there` holds where its notes can be read."""
    said: dict[str, Any] = {}
    contents: dict[File, bytes] = {}
    unread = [_UNREAD] * (len(file.notes) - len(there))
    for note, path in there.items():
        try:
            if is_metadata(note):
                said = read_row(file, note, path)
            else:
                contents[note] = path.read_bytes()
        except _NOTE_ERRORS:
            unread.append(_UNREAD)
    for key, value in read_notes(file, contents).items():  # Beside the image: closer to it.
        said[key] = value or said.get(key, value)
    if said.get("label") is None:
        said |= {"label": folder_label(escape(file.path)), "is_inferred": True}
    said["notes"] = (*said.get("notes", ()), *unread[:1])
    return Item.make(chunk.name(file), result, **said)


@contextmanager
def open_archive(chunk: Chunk) -> Iterator[IO[bytes]]:
    """Open the archive of a chunk; of a remote one, a copy that lasts as long as the block.

    Copies are made in the folder for temporary files (TMPDIR).

    Raises:
        InputError: It is gone, has changed since it was listed, or cannot be read.
    """
    location, file = chunk.location(), chunk.file
    if not is_remote(location):
        with _open_local(location, file, follow=True) as opened:
            yield opened
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "archive"
        _check_remote(location, file)
        (fault,) = download([(location, file.size, target)])
        if fault is not None:
            raise InputError(_since_listed(fault) or fault)
        with target.open("rb") as opened:
            yield opened


@contextmanager
def _open_local(location: str, file: File, *, follow: bool) -> Iterator[IO[bytes]]:
    """Open a regular file; never blocks on a pipe that has replaced it.

    Raises:
        InputError: It is gone, has changed since it was listed, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(location, flags)
    except OSError as error:
        is_link = not follow and Path(location).is_symlink()
        is_gone = is_link or isinstance(error, _GONE)
        raise InputError("changed" if is_gone else "unreadable") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("changed")
    with open(descriptor, "rb") as opened:  # noqa: PTH123 - a descriptor has no path.
        _check_unchanged(descriptor, file)
        yield opened


def _check_unchanged(descriptor: int, file: File) -> None:
    """Compare an open file with the listing; raises InputError."""
    status = os.fstat(descriptor)
    if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.stamp):
        raise InputError("changed")


def _check_remote(url: str, file: File) -> None:
    def look(system: object, path: str) -> File:
        system.invalidate_cache()  # type: ignore[attr-defined]
        return as_file("", system.info(path))  # type: ignore[attr-defined]

    try:
        now = on_filesystem(url, look)
    except ConfigError:
        return  # The download will retry, and report why it failed.
    if (now.size, now.stamp) != (file.size, file.stamp):
        raise InputError("changed")


def download(wanted: Sequence[tuple[str, int | None, Path]]) -> list[Reason | None]:
    """Download files concurrently, with the usual retries.

    Args:
        wanted: URL, size in bytes if known, and the target.

    Returns:
        For each file None, or why it could not be downloaded whole.
    """

    async def download_all() -> list[BaseException | object]:
        fetcher = Fetcher(_FETCH)
        try:
            downloads = (
                fetcher.download(FileRequest(url, n, None), path) for url, n, path in wanted
            )
            return await asyncio.gather(*downloads, return_exceptions=True)
        finally:
            await fetcher.close()

    return [_fault(result) for result in run(download_all())]


def _since_listed(fault: Reason | None) -> Reason | None:
    """Tell what became of a file that was there when it was listed."""
    return "changed" if fault == "missing" else fault


def _fault(result: BaseException | object) -> Reason | None:
    match result:
        case FetchError(kind="forbidden" | "missing" | "gone" as kind):
            return kind
        case FetchError(kind="corrupt"):  # The size differs.
            return "changed"
        case FetchError() | OSError() | ConfigError():
            return "unreadable"
        case BaseException():
            raise result
        case _:
            return None
