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
from pipeline.crawl.find import as_file, ask
from pipeline.crawl.inputs import File
from pipeline.crawl.item import Reason
from pipeline.remote.fetch import FetchConfig, Fetcher, FetchError, run
from pipeline.remote.location import Wanted, is_remote

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
            downloads = (fetcher.download(Wanted(url, n, None), path) for url, n, path in wanted)
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
