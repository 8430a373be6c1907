"""Find what the path of a source names: folders, archives and images, local or at a URL."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.ingest.sources.beside import attach
from pipeline.ingest.sources.inputs import File, Kind
from pipeline.ingest.sources.names import escape
from pipeline.remote.filesystem import explain, open_filesystem
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


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A folder, or a file whose kind its name tells."""

    given: str
    """Absolute path or URL to open."""
    location: str
    """The same with links resolved, so that one file has one location."""
    kind: Kind | None
    """None for a folder."""
    file: File | None
    """The file as listed, its path empty; None for a folder."""


def find(path: str) -> list[FoundSource]:
    """Find what a path, a URL, a glob or a brace pattern names, each once, in a fixed order.

    A path that exists is taken literally. HTTP has no folders and no globs.

    Raises:
        ConfigError: It does not exist, cannot be read, or is a file of an unknown kind.
    """
    found: dict[str, FoundSource] = {}
    for text in expand_braces(path, "source", "files"):
        check_scheme(text)
        for one in _find_remote(text) if is_remote(text) else _find_local(text):
            found.setdefault(one.location, one)
    return list(found.values())


def pattern_base(path: str) -> str:
    """Cut a path before its first component with a glob or a brace; all of it if there is none.

    >>> pattern_base("s3://b/x/{0..9}.tar"), pattern_base("*.tar"), pattern_base("a/b.tar")
    ('s3://b/x', '.', 'a/b.tar')
    """
    if not is_remote(path) and local_path(path).exists():
        return path
    found = re.search("[{]" if scheme_of(path) in HTTP else "[*?[{]", path)
    if found is None:
        return path
    base = path[: found.start()].rpartition("/")
    return base[0] or base[1] or "."


def _find_local(text: str) -> Iterator[FoundSource]:
    path = local_path(text)
    if glob.has_magic(os.fspath(path)) and not path.exists():
        matches = sorted(glob.glob(os.fspath(path), recursive=True))  # noqa: PTH207 - takes a string.
        if not matches:
            raise ConfigError(f"source (={escape(text)}) matches no file; check the pattern.")
    else:
        matches = [os.fspath(path)]
    for match in matches:
        try:
            resolved = Path(match).resolve()
            status = resolved.stat()
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
            yield FoundSource(
                given, os.fspath(resolved), _kind_of(match), as_local_file("", status)
            )
        else:
            raise ConfigError(f"source (={escape(match)}) is not a regular file; give another one.")


def _find_remote(url: str) -> Iterator[FoundSource]:
    if scheme_of(url) in HTTP:
        kind = _kind_of(url)
        info = on_filesystem(url, lambda system, path: system.info(path))
        yield FoundSource(url, url, kind, as_file("", info))
        return
    for name, info in sorted(on_filesystem(url, _look).items()):
        if info["type"] == "directory":
            yield FoundSource(name.rstrip("/"), name.rstrip("/"), None, None)
        else:
            yield FoundSource(name, name, _kind_of(name), as_file("", info))


def _look(system: Any, path: str) -> dict[str, Any]:
    """Return fsspec's info on the files and folders at a path or pattern, by URL."""
    system.invalidate_cache()
    if not glob.has_magic(path) or system.exists(path):
        return {system.unstrip_protocol(path): system.info(path)}
    found = system.glob(path, detail=True)
    if not found:
        raise FileNotFoundError
    return {system.unstrip_protocol(name): info for name, info in found.items()}


def _kind_of(location: str) -> Kind:
    """Tell by its name what a file is.

    Raises:
        ConfigError: The kind is unknown.
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


def list_tree(root: str, wants: Callable[[str], bool], others: Collection[str]) -> Iterator[File]:
    """List the regular files below a folder, in the order of their escaped paths.

    Of a local tree only the folders on the way to a file are in memory. Symbolic links are not
    followed; pipes, sockets and devices are never opened. An archive is a file like any other, and
    so no image, unless it is a source itself.

    Args:
        root: Path without links, or URL.
        wants: Tells by its escaped path below the folder whether a file is an input.
        others: Locations that are sources themselves, and excluded.

    Raises:
        ConfigError: A folder cannot be read.
    """
    for file in _list_remote(root) if is_remote(root) else _list_local(root):
        if wants(escape(file.path)[1:]) and (not others or root + file.path not in others):
            yield file


def _list_local(root: str) -> Iterator[File]:
    pending: list[File | tuple[str, File | None]] = [("", None)]
    while pending:  # Files, and folders: their path below the root, and what is said above them.
        found = pending.pop()
        if isinstance(found, File):
            yield found
        else:
            pending += reversed(_list_folder(root, *found))


def _list_folder(
    root: str, below: str, metadata: File | None
) -> list[File | tuple[str, File | None]]:
    """List the inputs and subfolders of a folder, in the order of all that is in them."""
    files: list[File] = []
    folders: list[str] = []
    folder = f"{root}{below}" or "/"
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(_stat(f"{below}/{entry.name}", entry))
    except OSError as error:
        raise ConfigError(
            f"folder (={escape(folder)}) cannot be read: {error.strerror}. "
            "Grant access or exclude it."
        ) from None
    inputs, metadata = attach(files, folders, metadata)
    found: dict[str, File | tuple[str, File | None]] = {
        escape(file.path.rpartition("/")[2]): file for file in inputs
    }
    for name in folders:  # With a slash, so that x.jpg comes before x/1.jpg.
        found[f"{escape(name)}/"] = (f"{below}/{name}", metadata)
    return [found[name] for name in sorted(found)]


def _stat(path: str, entry: "os.DirEntry[str]") -> File:
    try:
        return as_local_file(path, entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # Removed since: reading it will report that.
        return File(path, 0, "")


def _list_remote(root: str) -> list[File]:
    def find(system: Any, path: str) -> list[File]:
        start = path.rstrip("/")
        files = [
            as_file(name[len(start) :], info)
            for name, info in system.find(path, detail=True).items()
            if info["type"] == "file" and not name.endswith("/")
        ]
        return sorted(_attach_all(files), key=lambda file: escape(file.path))

    return on_filesystem(root, find)  # type: ignore[no-any-return]


def _attach_all(files: Iterable[File]) -> Iterator[File]:
    """Do with all files of a tree what `attach` does with those of a folder."""
    by_folder: dict[str, list[File]] = {"": []}
    for file in files:
        by_folder.setdefault(file.path.rpartition("/")[0], []).append(file)
    metadata: dict[str, File | None] = {}
    for folder in sorted(by_folder):
        above = folder
        while above and above not in metadata:
            above = above.rpartition("/")[0]
        below = [one[len(folder) + 1 :] for one in by_folder if one.startswith(f"{folder}/")]
        inputs, metadata[folder] = attach(by_folder[folder], below, metadata.get(above))
        yield from inputs


def on_filesystem(url: str, call: Callable[[Any, str], Any]) -> Any:
    """Call `call` with the fsspec file system of a URL, and the path there.

    Raises:
        ConfigError: There is no such file, it cannot be read, or a package is missing.
    """
    try:
        return call(*open_filesystem(url))
    except ImportError:
        raise ConfigError(
            f"source (={redact_url(url)}) needs a package that is not installed: "
            f"pip install {PACKAGES.get(scheme_of(url), 'fsspec')}"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # Every file system has its own errors.
        raise ConfigError(f"source (={redact_url(url)}) cannot be read: {explain(error)}") from None


def as_file(path: str, info: dict[str, Any]) -> File:
    """Make a File of fsspec's info."""
    stamp = next(
        (info[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in info), ""
    )
    size = info.get("size")
    return File(path, None if size is None else int(size), str(stamp))


def as_local_file(path: str, status: os.stat_result) -> File:
    """Make a File of the local file system's status."""
    return File(path, status.st_size, str(status.st_mtime_ns))
