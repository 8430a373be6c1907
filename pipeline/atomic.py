"""Atomic files: complete or absent, whatever happens during the write."""

import io
import json
import os
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import Buffer

_SYNC_BYTES = 2**22
_HOST_CHARS = 16


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it.

    A device or a pipe, as /dev/stdout, is written to as it is: a file must not take its place.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb", buffering=0) as file:
            _write_all(file, data)
        return
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


@contextmanager
def open_atomic(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing and reading that gets its name when the block ends without error.

    Data is flushed to the disk while more is written, so that little is left to wait for.

    Args:
        path: Final path.
        lasting: False does not wait for the disk, so a power failure may leave other bytes under
            the name: for files that are verified when read, and can be made again.

    Raises:
        OSError: The disk is full or fails; raised at the end of the block at the latest. It names
            `path`.
    """
    partial = partial_path(path)
    try:
        with _synced(partial) if lasting else partial.open("w+b") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # Where it could not be made.
            partial.unlink()


def partial_path(path: Path) -> Path:
    """Return a hidden name beside `path`, unlike that of any other writer.

    The number of a process is not enough: two containers that share a folder have equal ones.
    """
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")[:_HOST_CHARS]
    return path.with_name(f".{path.name}.{host}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _write_all(file: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with ThreadPoolExecutor(1) as thread, _EarlySynced(path, thread) as file:
        yield file
        file.sync()


class _EarlySynced(io.BufferedRandom):
    """A file that a thread flushes to the disk, some MiB at a time."""

    def __init__(self, path: Path, thread: ThreadPoolExecutor) -> None:
        super().__init__(io.FileIO(path, "w+b"))
        self._thread = thread
        self._syncing: Future[None] | None = None
        self._num_new = 0

    def write(self, data: Buffer, /) -> int:
        num_written = super().write(data)
        self._num_new += num_written
        if self._num_new >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._wait()
            self.flush()
            self._syncing = self._thread.submit(os.fdatasync, self.fileno())
            self._num_new = 0
        return num_written

    def sync(self) -> None:
        """Flush everything to the disk."""
        self._wait()
        self.flush()
        os.fsync(self.fileno())

    def close(self) -> None:
        """Close the file after the thread is done; its errors no longer matter."""
        if self._syncing is not None:
            self._syncing.exception()
        super().close()

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()  # The kernel reports a failure only once.
