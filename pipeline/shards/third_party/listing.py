"""Expand paths, globs, brace patterns, folders and URLs to shards, in a fixed order."""

import glob
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from pipeline.config import ConfigError
from pipeline.remote.filesystem import explain, open_filesystem
from pipeline.remote.location import (
    HTTP,
    check_scheme,
    is_remote,
    local_path,
    redact_url,
    scheme_of,
)

_MOST = 1_000_000
"""Most shards; a pattern that gives more has a typo."""


def list_shards(inputs: Sequence[str]) -> list[str]:
    """List every shard once: inputs in the order given, folders and globs sorted.

    An existing path is used literally, whatever its name; folders and globs give only *.tar.
    Brace patterns are expanded first: {000000..000009}, {train,val}.

    Returns:
        Absolute paths and URLs.

    Raises:
        ConfigError: An input matches no shard, a shard is missing, or is given twice.
    """
    names: dict[str, None] = {}  # An ordered set.
    for text in inputs:
        for pattern in expand_braces(text, "input", "shards"):
            check_scheme(pattern)
            found = _find_remote(pattern) if is_remote(pattern) else _find_local(pattern)
            if not found:
                raise ConfigError(f"input (={redact_url(pattern)}) matches no .tar file.")
            for name in found:
                _check_name(name, names)
                names[name] = None
    return list(names)


def ask_filesystem(url: str, method: str) -> Any:
    """Call a method of a URL's file system with the URL's path.

    Raises:
        ConfigError: It is missing or forbidden, or a package for the scheme is missing.
        OSError: The request failed.
    """
    try:
        system, path = open_filesystem(url)
        return getattr(system, method)(path)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"shard (={redact_url(url)}) cannot be read: {explain(error)}") from None
    except ImportError as error:
        raise ConfigError(f"shard (={redact_url(url)}) needs a package: {error}.") from None
    except OSError:
        raise
    except Exception as error:  # Every file system has its own errors.
        raise OSError(f"{redact_url(url)}: {explain(error)}") from None


def expand_braces(text: str, what: str, of: str) -> list[str]:
    """Expand brace patterns, unless a local file has exactly this name.

    Args:
        text: A path or a URL.
        what: What messages call it: input.
        of: What messages call its results: shards.

    Raises:
        ConfigError: Its braces are unbalanced, or expand to more than a million.
    """
    if "{" not in text or (not is_remote(text) and local_path(text).exists()):
        return [text]
    counts = (_count_choices(group) for group in re.findall(r"\{([^{}]*)\}", text))
    if math.prod(counts) > _MOST:  # Checked first: the results are all held in memory.
        raise ConfigError(
            f"{what} (={redact_url(text)}) expands to more than {_MOST} {of}; check its braces."
        )
    try:
        return list(braceexpand(text, escape=False))
    except ValueError:
        raise ConfigError(
            f"{what} (={redact_url(text)}) has unbalanced braces; close them."
        ) from None


def _count_choices(group: str) -> int:
    bounds = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})(\.\.-?\d+)?", group)
    return abs(int(bounds[2]) - int(bounds[1])) + 1 if bounds else group.count(",") + 1


def _find_local(pattern: str) -> list[str]:
    path = local_path(pattern)
    if path.is_dir():
        return _tars(path.rglob("*.tar"))
    if path.exists() or not glob.has_magic(pattern):
        return [os.path.abspath(path)]  # noqa: PTH100 - resolve() would follow links.
    matches = [Path(match) for match in glob.glob(os.fspath(path), recursive=True)]  # noqa: PTH207
    below = [tar for match in matches if match.is_dir() for tar in match.rglob("*.tar")]
    return _tars([*matches, *below])


def _tars(paths: Iterable[Path]) -> list[str]:
    tars = {path for path in paths if path.suffix == ".tar" and path.is_file()}
    return [os.path.abspath(path) for path in sorted(tars)]  # noqa: PTH100


def _find_remote(url: str) -> list[str]:
    is_http = scheme_of(url) in HTTP
    has_magic = "*" in url.partition("?")[0] if is_http else glob.has_magic(url)
    if not has_magic and (is_http or url.endswith(".tar")):
        return [url]
    system, path = open_filesystem(url)
    found = ask_filesystem(url, "glob" if has_magic else "find")
    tars = sorted(name for name in found if name.endswith(".tar") or name == path)
    return [system.unstrip_protocol(name) for name in tars]


def _check_name(name: str, earlier: dict[str, None]) -> None:
    if name in earlier:
        raise ConfigError(f"shard (={redact_url(name)}) is named twice; give each shard once.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"shard (={name!a}) has a name that is not UTF-8; rename it.") from None
    if not is_remote(name) and not Path(name).is_file():
        raise ConfigError(f"shard (={name}) is not an existing file; check the name.")
