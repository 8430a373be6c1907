"""List the files of folder trees: every regular file is an input, whatever its name."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """An original file before sharding."""

    path: str
    """Name of its source folder and path below it, escaped to plain Unicode; unique."""
    file: str
    """Path to open; holds surrogates where the name is not UTF-8."""
    label: str | None
    """Name of its folder, escaped; None for a file that lies directly in the source folder."""


def list_sources(folders: Sequence[Path]) -> list[Source]:
    """List every regular file below `folders`, in the order of `Source.path`.

    Symbolic links are not followed; pipes, sockets and devices are no inputs and never opened.
    Labels are kept only where the trees have at least 2 folder names that hold files.

    Raises:
        ConfigError: A folder is missing, unreadable, given twice or inside another one, or there
            is no file at all.
    """
    roots = [_resolve(folder) for folder in folders]
    for i, root in enumerate(roots):
        for other in roots[i + 1 :]:
            if root.is_relative_to(other) or other.is_relative_to(root):
                raise ConfigError(f"sources (={root}, {other}) overlap; give each folder once.")
    found = [
        source
        for root, name in zip(roots, source_names(folders), strict=True)
        for source in _walk(os.fspath(root), name)
    ]
    if not found:
        listed = ", ".join(str(folder) for folder in folders)
        raise ConfigError(f"sources (={listed}) hold no file; give a folder of images.")
    if len({source.label for source in found} - {None}) < 2:
        found = [Source(source.path, source.file, None) for source in found]
    return sorted(found, key=lambda source: source.path)


def source_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by the shortest tail of its path that tells it from the others."""
    parts = [escape(os.fspath(folder.resolve())).split("/") for folder in folders]
    for depth in range(1, max((len(part) for part in parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


def escape(path: str) -> str:
    r"""Write a path as plain Unicode, reversibly: other bytes become \xNN, a backslash doubles.

    >>> escape("caf\udce9/1.jpg") == r"caf\xe9/1.jpg"
    True
    """
    return os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _resolve(folder: Path) -> Path:
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"source (={folder}) cannot be read: {error.strerror}. Give a folder of images."
        ) from None
    if not is_folder:
        raise ConfigError(f"source (={folder}) is not a folder; give a folder of images.")
    return folder.resolve()


def _walk(root: str, name: str) -> Iterator[Source]:
    pending = [("", root)]  # (escaped path below root, real path)
    while pending:
        below, folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError as error:
            raise ConfigError(
                f"folder (={escape(folder)}) cannot be read: {error.strerror}. "
                "Grant access or leave it out."
            ) from None
        label = below.rsplit("/", 1)[-1] or None
        for entry in found:
            path = f"{below}/{escape(entry.name)}"
            if entry.is_dir(follow_symlinks=False):
                pending.append((path, entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Source(name + path, entry.path, label)
