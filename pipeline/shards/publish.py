"""Upload a finished folder of shards to a URL: whole objects only, the manifest last."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import fsspec

from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchConfig, FetchError, read_bytes
from pipeline.remote.location import HTTP, check_scheme, join, redact_url, scheme_of
from pipeline.shards.manifest import (
    FILE_NAME,
    LEDGER_NAME,
    PICTURES_NAME,
    Manifest,
    read_manifest,
)

_DONE_NAME = ".published"
_ATTEMPTS = 5
_BACKOFF = 0.5  # s, before the second try; doubled each time
_AT_ONCE = 4


class PublishError(RuntimeError):
    """A file could not be uploaded; what is there is intact, and no manifest refers to it."""


def check_target(url: str) -> None:
    """Refuse a URL that cannot be written to, before any work is done.

    Raises:
        ConfigError: Its scheme is read-only, or needs a package that is not installed.
    """
    check_scheme(url)
    if scheme_of(url) in HTTP:
        raise ConfigError(
            f"out (={redact_url(url)}) is an HTTP URL, which is read-only; give "
            "s3://, gs://, az:// or a folder."
        )
    _system(url)


def publish(folder: Path, url: str, *, on_progress: Callable[[float, float, str], None]) -> None:
    """Copy the shards of `folder`, their indexes and ledgers to `url`, and then the manifest.

    An interrupted call resumes with what is missing. Readers see no object before it is complete,
    and no manifest before all objects are.

    Args:
        folder: Holds a finished manifest; gains only a record of what was copied.
        url: URL of the target folder.
        on_progress: Receives bytes done, total bytes and a note.

    Raises:
        ConfigError: `url` holds another manifest, or cannot be written to.
        PublishError: A file could not be copied after several tries.
    """
    made = read_manifest(folder)
    check_target(url)
    _refuse_other(made, url)
    files = [folder / name for name in _names(made) if (folder / name).exists()]
    done = _read_done(folder, url)
    total = sum(path.stat().st_size for path in files)
    sofar = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tasks = {pool.submit(_copy, path, url, done): path for path in files}
        try:
            for task in as_completed(tasks):
                task.result()
                path = tasks[task]
                _note_done(folder, url, path)
                sofar += path.stat().st_size
                on_progress(sofar, total, path.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _copy(folder / FILE_NAME, url, {})


def _names(made: Manifest) -> Iterator[str]:
    for info in made.shards:
        yield info.name
        yield info.index
        if info.ledger:
            yield info.ledger
    yield from (LEDGER_NAME, PICTURES_NAME)


def _refuse_other(made: Manifest, url: str) -> None:
    try:
        raw = json.loads(read_bytes(_target(url, FILE_NAME), FetchConfig(attempts=2)))
    except FetchError as error:
        if error.kind == "missing":
            return
        raise PublishError(f"out (={redact_url(url)}) cannot be read: {error}") from error
    except ValueError:
        raw = {}
    if not isinstance(raw, dict) or raw.get("fingerprint") != made.fingerprint:
        raise ConfigError(
            f"out (={redact_url(url)}) holds another set of shards; choose another place."
        )


def _copy(path: Path, url: str, done: dict[str, str]) -> None:
    """Copy a file unless an earlier copy is still there; retries."""
    target, size = _target(url, path.name), path.stat().st_size
    for attempt in range(1, _ATTEMPTS + 1):
        system, place = _system(target)
        try:
            system.invalidate_cache()
            if done.get(path.name) == _stamp(path) and system.info(place)["size"] == size:
                return
            system.put_file(os.fspath(path), place)
            system.invalidate_cache()
            found = system.info(place)["size"]
            if found == size:
                return
            problem = f"has {found} bytes there, not {size}"
        except FileNotFoundError:  # Copied before and gone since: copy again.
            problem, done = "is not there after it was copied", {}
        except Exception as error:  # Stores raise arbitrary errors.
            problem = f"{type(error).__name__}: {error}"
        if attempt < _ATTEMPTS:
            time.sleep(_BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise PublishError(
        f"{path.name} could not be copied to {redact_url(url)} in {_ATTEMPTS} tries ({problem}). "
        "Run the same command again with --resume; what was copied is kept."
    )


def _stamp(path: Path) -> str:
    """Identify a version of a file by size and mtime."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _target(url: str, name: str) -> str:
    return join(url.rstrip("/") + "/", name)


def _system(url: str) -> tuple[Any, str]:
    try:
        found: tuple[Any, str] = fsspec.url_to_fs(url)
        return found
    except ImportError as error:
        raise ConfigError(f"out (={redact_url(url)}) needs a package: {error}.") from None


def _read_done(folder: Path, url: str) -> dict[str, str]:
    """Read the name and stamp of every file already copied to `url`."""
    try:
        lines = (folder / _DONE_NAME).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return {}
    return {row["name"]: row["stamp"] for row in rows if row["url"] == url}


def _note_done(folder: Path, url: str, path: Path) -> None:
    row = {"url": url, "name": path.name, "stamp": _stamp(path)}
    with (folder / _DONE_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
