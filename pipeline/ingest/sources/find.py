"""What the path of a source names: folders, archives and images, here or at a URL."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec

from pipeline.config import ConfigError
from pipeline.ingest.sources.inputs import File, Kind
from pipeline.ingest.sources.names import escape
from pipeline.remote.location import (
    HTTP,
    PACKAGES,
    check_scheme,
    is_remote,
    local_path,
    redact_url,
    scheme_of,
)
from pipeline.shards.third_party.listing import expand_braces

_KINDS: dict[Kind, tuple[str, ...]] = {
    "tar": (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
        *(".tar.zst", ".tzst"),
    ),
    "zip": (".zip",),
    "warc": (".warc", ".warc.gz", ".arc", ".arc.gz"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "jsonl": (".jsonl", ".ndjson"),
    "files": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif"),
    ),
}
_ENDINGS = tuple(chain.from_iterable(_KINDS.values()))


def kind_of(location: str) -> Kind:
    """Tell by its name what a file is.

    Raises:
        ConfigError: It is of no kind that is known.
    """
    name = re.split(r"[?#]", location, maxsplit=1)[0] if scheme_of(location) in HTTP else location
    lower = name.lower()
    for kind, endings in _KINDS.items():
        if lower.endswith(endings):
            return kind
    raise ConfigError(
        f"source (={escape(redact_url(location))}) is of no kind known by its name: "
        f"{', '.join(_ENDINGS)}. "
        "Unpack it, rename it, or give the folder it lies in."
    )


_MOST = 1_000_000
"""Files; a pattern that gives more holds a typing mistake."""


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A folder, or a file and what it is by its name."""

    given: str
    """Absolute path or URL to open."""
    location: str
    """The same without links: two ways to one file have one."""
    kind: Kind | None
    """None for a folder."""
    file: File | None
    """How it was; None for a folder. Its path is left empty."""


def find(path: str) -> list[FoundSource]:
    """Find what a path, a URL, a glob or a brace pattern names, each once, in a fixed order.

    A path that exists is taken as it is, whatever its name. HTTP has no folders and no globs.

    Raises:
        ConfigError: Nothing is there, it cannot be read, or a file is of no kind that is known.
    """
    found: dict[str, FoundSource] = {}
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
            f"source (={redact_url(url)}) cannot be read: no such file. Check the address."
        ) from None
    except ImportError:
        raise ConfigError(
            f"source (={redact_url(url)}) needs a package that is not installed: "
            f"pip install {PACKAGES.get(scheme_of(url), 'fsspec')}"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # Every file system has errors of its own.
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"source (={redact_url(url)}) cannot be read: {text}. Check address and credentials."
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


def _find_local(text: str) -> Iterator[FoundSource]:
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
            yield FoundSource(given, os.fspath(resolved), None, None)
        elif resolved.is_file():
            yield FoundSource(given, os.fspath(resolved), kind_of(match), as_local_file("", about))
        else:
            raise ConfigError(f"source (={escape(match)}) is no regular file; give another one.")


def _find_remote(url: str) -> Iterator[FoundSource]:
    if scheme_of(url) in HTTP:
        kind = kind_of(url)
        info = ask(url, lambda system, path: system.info(path))
        yield FoundSource(url, url, kind, as_file("", info))
        return
    for name, info in sorted(ask(url, _look).items()):
        if info["type"] == "directory":
            yield FoundSource(name.rstrip("/"), name.rstrip("/"), None, None)
        else:
            yield FoundSource(name, name, kind_of(name), as_file("", info))


def _look(system: Any, path: str) -> dict[str, Any]:
    """Describe the files and folders at a path or pattern, by URL."""
    system.invalidate_cache()
    if not glob.has_magic(path) or system.exists(path):
        return {system.unstrip_protocol(path): system.info(path)}
    found = system.glob(path, detail=True)
    if not found:
        raise FileNotFoundError
    return {system.unstrip_protocol(name): info for name, info in found.items()}


def list_tree(root: str, wants: Callable[[str], bool], others: Collection[str]) -> Iterator[File]:
    """List every regular file below a folder, in the order of their escaped paths.

    Of a local tree no more is held than the folders on the way to a file. Symbolic links are not
    followed; pipes, sockets and devices are no inputs and never opened. An archive is a file like
    any other, and so no image, unless it is a source itself.

    Args:
        root: Path without links, or URL.
        wants: Tells by its escaped path below the folder whether a file is an input.
        others: Locations that are sources of their own; they are left out.

    Raises:
        ConfigError: A folder cannot be read.
    """
    for file in _list_remote(root) if is_remote(root) else _list_local(root):
        if wants(escape(file.path)[1:]) and (not others or root + file.path not in others):
            yield file


def _list_local(root: str) -> Iterator[File]:
    pending: list[File | str] = [""]  # Files, and the paths of folders below the root.
    while pending:
        found = pending.pop()
        if isinstance(found, File):
            yield found
        else:
            pending += reversed(_list_folder(root, found))


def _list_folder(root: str, below: str) -> list[File | str]:
    """List the files of a folder and the paths of its folders, in the order of what is in them."""
    found: dict[str, File | str] = {}
    folder = f"{root}{below}" or "/"
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path, name = f"{below}/{entry.name}", escape(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    found[f"{name}/"] = path  # So x.jpg comes before x/1.jpg.
                elif entry.is_file(follow_symlinks=False):
                    found[name] = _as_found(path, entry)
    except OSError as error:
        raise ConfigError(
            f"folder (={escape(folder)}) cannot be read: {error.strerror}. "
            "Grant access or leave it out."
        ) from None
    return [found[name] for name in sorted(found)]


def _as_found(path: str, entry: "os.DirEntry[str]") -> File:
    try:
        return as_local_file(path, entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # Gone since: reading it says so.
        return File(path, 0, "")


def _list_remote(root: str) -> list[File]:
    def find(system: Any, path: str) -> list[File]:
        start = path.rstrip("/")
        files = [
            as_file(name[len(start) :], info)
            for name, info in system.find(path, detail=True).items()
            if info["type"] == "file" and not name.endswith("/")
        ]
        return sorted(files, key=lambda file: escape(file.path))

    return ask(root, find)  # type: ignore[no-any-return]
