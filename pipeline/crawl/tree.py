"""List the files of folder trees: every regular file is an input, whatever its name."""

import os
from collections.abc import Callable, Collection
from typing import Any

from pipeline.config import ConfigError
from pipeline.crawl.find import as_file, as_local_file, ask
from pipeline.crawl.inputs import File
from pipeline.crawl.names import escape
from pipeline.remote.location import is_remote


def list_tree(root: str, wants: Callable[[str], bool], others: Collection[str]) -> list[File]:
    """List every regular file below a folder, in the order of their names.

    Symbolic links are not followed; pipes, sockets and devices are no inputs and never opened. An
    archive is a file like any other, and so no image, unless it is a source itself.

    Args:
        root: Path without links, or URL.
        wants: Tells by its escaped path below the folder whether a file is an input.
        others: Locations that are sources of their own; they are left out.

    Raises:
        ConfigError: A folder cannot be read.
    """
    found = _list_remote(root) if is_remote(root) else _list_local(root)
    kept = [
        (name, file)
        for name, file in ((escape(file.path), file) for file in found)
        if wants(name[1:]) and (not others or root + file.path not in others)
    ]
    return [file for _, file in sorted(kept)]


def _list_local(root: str) -> list[File]:
    files: list[File] = []
    pending = [""]  # Paths below the root.
    while pending:
        below = pending.pop()
        folder = f"{root}{below}" or "/"
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{below}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(_as_found(path, entry))
        except OSError as error:
            raise ConfigError(
                f"folder (={escape(folder)}) cannot be read: {error.strerror}. "
                "Grant access or leave it out."
            ) from None
    return files


def _as_found(path: str, entry: "os.DirEntry[str]") -> File:
    try:
        return as_local_file(path, entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # Gone since: reading it says so.
        return File(path, 0, "")


def _list_remote(root: str) -> list[File]:
    def find(system: Any, path: str) -> list[File]:
        start = path.rstrip("/")
        return [
            as_file(name[len(start) :], info)
            for name, info in system.find(path, detail=True).items()
            if info["type"] == "file" and not name.endswith("/")
        ]

    return ask(root, find)  # type: ignore[no-any-return]
