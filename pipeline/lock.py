"""One owner for a folder at a time: a second one is refused."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config import ConfigError

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock `out` for this process, creating it if missing.

    The kernel drops the lock with the process, however that ends; the file of a dead one is taken
    over. Folders created here are removed again if they end up empty.

    Raises:
        ConfigError: Another process holds the folder; names it.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]  # Innermost first.
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_NAME
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"out (={out}) is in use by {_holder(path)}; wait for it or choose another folder."
            ) from None
        try:
            started = datetime.now(timezone.utc).isoformat(timespec="seconds")
            about = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            path.write_text(json.dumps(about), encoding="utf-8")
            yield
        finally:
            path.unlink(missing_ok=True)  # Still held, so it cannot be another process's.
            lock.release()
    finally:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
