"""List the files of folder trees: every regular file is an input, whatever its name."""

import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pipeline.config import ConfigError
from pipeline.crawl.find import as_file, as_local_file, ask
from pipeline.crawl.inputs import File
from pipeline.crawl.names import escape
from pipeline.remote.location import is_remote


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
