"""One file of the cache: where it lies, who uses it, and whether it is whole.

Three files with one key, the hash of the whole URL: `KEY-name` is the file, `KEY.json` its record,
whose mtime is its last use, `KEY.partial` its download. Locks are flocks, which the kernel drops
with their owner: a shared one on the file pins it, an exclusive one on the record is the right to
write or delete all three.
"""

import fcntl
import hashlib
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import Field, ValidationError

from pipeline.config import Config
from pipeline.remote.location import FileRequest, redact_url


class CacheRecord(Config):
    """A file as it was when it was last known to be whole."""

    url: str
    """For people."""
    sha256: str
    num_bytes: int = Field(ge=0)
    mtime_ns: int
    ctime_ns: int
    """Unlike the mtime, nobody can set this one back."""

    def fits(self, stat: os.stat_result, wanted: FileRequest) -> bool:
        """Tell whether a file is still that one, and the wanted one."""
        return (
            (self.num_bytes, self.mtime_ns, self.ctime_ns)
            == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            and wanted.num_bytes in (None, self.num_bytes)
            and wanted.sha256 in (None, self.sha256)
        )


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The place of a URL in the cache's folder."""

    folder: Path
    key: str
    """32 hex digits."""
    name: str
    """Of the file: the key and something for people."""

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def record_path(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.key}.partial"

    def own(self) -> FileIO | None:
        """Take the right to write and delete; None while somebody else has it."""
        return _locked(self.record_path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def disown(self, owned: FileIO) -> None:
        """Give that right back; no partial file stays, and no record without its file."""
        with owned:
            self.partial.unlink(missing_ok=True)
            if not self.path.exists():
                self.record_path.unlink(missing_ok=True)

    def pin(self) -> FileIO | None:
        """Open the file, which stays until that is closed; None where there is none."""
        return _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH)

    def holds(self, pinned: FileIO) -> bool:
        """Tell whether the pinned file still is the one at this place."""
        return _is_at(pinned, self.path)

    def is_known(self, pinned: FileIO, wanted: FileRequest) -> bool:
        """Tell whether the pinned file is whole from its record alone."""
        record = self._record()
        return record is not None and record.fits(os.fstat(pinned.fileno()), wanted)

    def is_whole(self, pinned: FileIO, owned: FileIO, wanted: FileRequest) -> bool:
        """Tell whether the pinned file is whole by reading all of it, and record that it is."""
        record, num_bytes = self._record(), os.fstat(pinned.fileno()).st_size
        sha256 = wanted.sha256 or (record.sha256 if record else None)
        if sha256 is None or wanted.num_bytes not in (None, num_bytes):
            return False
        digest = hashlib.sha256()
        while block := pinned.read(1 << 20):
            digest.update(block)
        if digest.hexdigest() != sha256:
            return False
        self._write_record(pinned, owned, wanted.url, sha256)
        return True

    def publish(self, owned: FileIO, url: str, sha256: str) -> FileIO:
        """Give the partial file, which is whole, its name; returns it pinned from the start."""
        pinned = _locked(self.partial, os.O_RDONLY, fcntl.LOCK_SH)
        assert pinned is not None
        self.partial.replace(self.path)
        self._write_record(pinned, owned, url, sha256)
        return pinned

    def touch(self) -> None:
        """Note that the file is used now."""
        now = time.time_ns()  # The file system's own clock may tick as seldom as every 4 ms.
        with suppress(FileNotFoundError):  # Somebody discards it at this moment.
            os.utime(self.record_path, ns=(now, now))

    def evict(self) -> Literal["gone", "pinned", "in transit"]:
        """Delete the file unless somebody uses or downloads it."""
        owned = self.own()
        if owned is None:
            return "in transit"
        try:
            if self.path.exists():
                unpinned = _locked(self.path, os.O_RDONLY, fcntl.LOCK_EX)
                if unpinned is None:
                    return "pinned"
                with unpinned:
                    self.path.unlink()
            return "gone"
        finally:
            self.disown(owned)

    def _record(self) -> CacheRecord | None:
        """Read the record; one torn by a crash is none, and the file is read once more."""
        try:
            return CacheRecord.model_validate_json(self.record_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write_record(self, pinned: FileIO, owned: FileIO, url: str, sha256: str) -> None:
        stat = os.fstat(pinned.fileno())
        record = CacheRecord(
            url=redact_url(url),
            sha256=sha256,
            num_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
        )
        owned.truncate(0)
        os.pwrite(owned.fileno(), record.model_dump_json(indent=1).encode(), 0)
        self.touch()


def entry_of(folder: Path, url: str) -> CacheEntry:
    """Name the place of a URL: by all of it, for two hosts may have a `0.tar`."""
    key = xxhash.xxh3_128_hexdigest(url.encode())
    tail = re.sub(r"[^A-Za-z0-9_.-]", "_", redact_url(url).rpartition("/")[2])
    return CacheEntry(folder, key, f"{key}-{tail[-80:]}")


def _locked(path: Path, flags: int, lock: int) -> FileIO | None:
    """Open and lock a file; None where it is missing, or locked by somebody else."""
    while True:
        try:
            file = FileIO(os.open(path, flags | os.O_CLOEXEC, 0o644), "r+" if flags else "r")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if _is_at(file, path):
            return file
        file.close()  # It was deleted or replaced meanwhile: look again.


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
