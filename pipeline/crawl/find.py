"""What the path of a source names: folders, archives and images, here or at a URL."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from pipeline.config import ConfigError
from pipeline.crawl.inputs import File, Kind
from pipeline.crawl.kinds import kind_of
from pipeline.crawl.names import escape
from pipeline.remote.location import (
    HTTP,
    PACKAGES,
    check_scheme,
    is_remote,
    local_path,
    scheme_of,
    shown,
)
from pipeline.shards.listing import expand_braces

_MOST = 1_000_000
"""Files; a pattern that gives more holds a typing mistake."""


@dataclass(frozen=True, slots=True)
class Found:
    """A folder, or a file and what it is by its name."""

    given: str
    """Absolute path or URL to open."""
    location: str
    """The same without links: two ways to one file have one."""
    kind: Kind | None
    """None for a folder."""
    file: File | None
    """How it was; None for a folder. Its path is left empty."""


def find(path: str) -> list[Found]:
    """Find what a path, a URL, a glob or a brace pattern names, each once, in a fixed order.

    A path that exists is taken as it is, whatever its name. HTTP has no folders and no globs.

    Raises:
        ConfigError: Nothing is there, it cannot be read, or a file is of no kind that is known.
    """
    found: dict[str, Found] = {}
    for text in expand_braces(path, "source", "files"):
        check_scheme(text)
        for one in _find_remote(text) if is_remote(text) else _find_local(text):
            found.setdefault(one.location, one)
    return list(found.values())


def pattern_base(path: str) -> str:
    """Cut a path before the first part that holds a glob or a brace; all of it where none does.

    >>> pattern_base("s3://b/x/{0..9}.tar"), pattern_base("*.tar"), pattern_base("a/b.tar")
    ('s3://b/x', '.', 'a/b.tar')
    """
    if not is_remote(path) and local_path(path).exists():
        return path
    magic = "[{]" if scheme_of(path) in HTTP else "[*?[{]"
    at = re.search(magic, path)
    if at is None:
        return path
    base = path[: at.start()].rpartition("/")
    return base[0] or base[1] or "."


def ask(url: str, work: Callable[[Any, str], Any]) -> Any:
    """Call `work` with the file system that a URL belongs to, and the path there.

    Raises:
        ConfigError: There is no such file, it cannot be had, or a package is missing.
    """
    try:
        system, path = fsspec.url_to_fs(url)
        return work(system, path)
    except FileNotFoundError:
        raise ConfigError(
            f"source (={shown(url)}) cannot be read: no such file. Check the address."
        ) from None
    except ImportError:
        raise ConfigError(
            f"source (={shown(url)}) needs a package that is not installed: "
            f"pip install {PACKAGES.get(scheme_of(url), 'fsspec')}"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # Every file system has errors of its own.
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"source (={shown(url)}) cannot be read: {text}. Check address and credentials."
        ) from None


def as_file(path: str, info: dict[str, Any]) -> File:
    """Take over what a file system of fsspec says of a file."""
    stamp = next(
        (info[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in info), ""
    )
    size = info.get("size")
    return File(path, None if size is None else int(size), str(stamp))


def as_local_file(path: str, about: os.stat_result) -> File:
    """Take over what the local file system says of a file."""
    return File(path, about.st_size, str(about.st_mtime_ns))


def _find_local(text: str) -> Iterator[Found]:
    path = local_path(text)
    if glob.has_magic(os.fspath(path)) and not path.exists():
        matches = sorted(glob.glob(os.fspath(path), recursive=True))  # noqa: PTH207 - of a text.
        if not matches:
            raise ConfigError(f"source (={escape(text)}) matches no file; check the pattern.")
    else:
        matches = [os.fspath(path)]
    for match in matches:
        try:
            resolved = Path(match).resolve()
            about = resolved.stat()
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or "it is a loop of links"
            raise ConfigError(
                f"source (={escape(match)}) cannot be read: {why}. "
                "Give a folder of images, an archive or an image."
            ) from None
        given = os.path.abspath(match)  # noqa: PTH100 - resolve() would follow links.
        if resolved.is_dir():
            yield Found(given, os.fspath(resolved), None, None)
        elif resolved.is_file():
            yield Found(given, os.fspath(resolved), kind_of(match), as_local_file("", about))
        else:
            raise ConfigError(f"source (={escape(match)}) is no regular file; give another one.")


def _find_remote(url: str) -> Iterator[Found]:
    if scheme_of(url) in HTTP:
        kind = kind_of(url)
        info = ask(url, lambda system, path: system.info(path))
        yield Found(url, url, kind, as_file("", info))
        return
    for name, info in sorted(ask(url, _look).items()):
        if info["type"] == "directory":
            yield Found(name.rstrip("/"), name.rstrip("/"), None, None)
        else:
            yield Found(name, name, kind_of(name), as_file("", info))


def _look(system: Any, path: str) -> dict[str, Any]:
    """Describe the files and folders at a path or pattern, by URL."""
    system.invalidate_cache()
    if not glob.has_magic(path) or system.exists(path):
        return {system.unstrip_protocol(path): system.info(path)}
    found = system.glob(path, detail=True)
    if not found:
        raise FileNotFoundError
    return {system.unstrip_protocol(name): info for name, info in found.items()}
