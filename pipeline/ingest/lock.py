"""One run for each folder of shards: a lock that dies with its holder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pipeline.config import ConfigError

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Hold `out` for this process, and make it where it is missing.

    The kernel drops the lock with the process, however that ends; what a dead one left behind is
    taken over. A folder that was made here and is empty in the end is removed again.

    Raises:
        ConfigError: Another process holds the folder; names it.
    """
    made = _make(out)
    try:
        file = _acquire(out / LOCK_NAME, out)
        try:
            yield
        finally:
            (out / LOCK_NAME).unlink(missing_ok=True)
            os.close(file)
    finally:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _make(out: Path) -> list[Path]:
    """Make `out` and what is missing above it; returns what was made, innermost first."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path, out: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 1000, 0)
            os.close(file)
            raise ConfigError(
                f"out (={out}) is in use by {_describe(holder)}; wait for it or choose another "
                "folder."
            ) from None
        if _is_at(file, path):
            break
        os.close(file)  # Its holder has removed it between our two calls.
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(about).encode(), 0)
    return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _describe(holder: bytes) -> str:
    try:
        known = json.loads(holder)
        return f"process {known['pid']} on {known['host']} since {known['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
