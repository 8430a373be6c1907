"""Names of inputs, unique and plain Unicode, and the globs that select them."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from pipeline.shards.samples import plain_key

_NO_CLASSES = frozenset(
    (
        *("train", "training", "val", "valid", "validation", "dev", "test", "testing"),
        *("images", "imgs", "img", "jpegimages", "data", "__macosx", "@eadir"),
    )
)
"""Folders that are a split or a wrapper, in lower case."""
_SHARD_DIGITS = 5
"""Fewest digits of a shard's number."""


def is_wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether `path` matches one of `include`, where there are any, and none of `exclude`.

    `*` does not match a slash, `**` does, `?` is one character, `[ab]` one of several. A pattern
    without a slash matches the last component of the path; one that ends in a slash, everything
    below that folder.

    >>> is_wanted("a/b/1.jpg", ["*.jpg"], ["thumbs/"]), is_wanted("a/b/1.jpg", ["a/*.jpg"], [])
    (True, False)
    """
    if include and not any(_matches(path, pattern) for pattern in include):
        return False
    return not any(_matches(path, pattern) for pattern in exclude)


def _matches(path: str, pattern: str) -> bool:
    subject = path if "/" in pattern else path.rpartition("/")[2]
    return _compile(pattern)(subject) is not None


@lru_cache(1024)
def _compile(pattern: str) -> Callable[[str], re.Match[str] | None]:
    whole = pattern + "**" if pattern.endswith("/") else pattern
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", whole)
    return re.compile("".join(map(_translate, pieces)), re.DOTALL).fullmatch


def _translate(piece: str) -> str:
    if len(piece) > 2 and piece[0] == "[":
        return fnmatch.translate(piece).removeprefix("(?s:").rpartition(")")[0]
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return known.get(piece) or re.escape(piece)


def escape(path: str) -> str:
    r"""Write a path as plain Unicode, reversibly: non-UTF-8 bytes as \xNN, backslashes doubled.

    >>> escape("caf\udce9/1.jpg") == r"caf\xe9/1.jpg"
    True
    """
    return plain_key(path.replace("\\", "\\\\"))


def member_name(archive: str, member: str) -> str:
    r"""Name a member after its archive.

    A leading @ is escaped: it is reserved for places in an archive, see `place_name`.

    >>> member_name("a.tar", "./x/1.jpg"), member_name("a.tar", "@5")
    ('a.tar!x/1.jpg', 'a.tar!\\x405')
    """
    plain = escape(re.sub(r"^(\./+)+(?=.)", "", member))
    return f"{archive}!" + (rf"\x40{plain[1:]}" if plain.startswith("@") else plain)


def place_name(archive: str, offset: int) -> str:
    """Name what has no name by its place in the archive: a byte, a row, a member's number."""
    return f"{archive}!@{offset}"


def is_unsafe(member: str) -> bool:
    """Tell whether a member would be extracted outside the target folder.

    >>> [is_unsafe(name) for name in ("a/../../b.jpg", "/etc/passwd", "a/..b.jpg")]
    [True, True, False]
    """
    return member.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member)


def folder_label(path: str) -> str | None:
    """Return the last folder of an escaped path that may be a class, None where there is none.

    Folders of splits, wrappers such as `images`, and img2dataset's numbers of shards are none.

    >>> folder_label("site/cat/1.jpg"), folder_label("cat/train/1.jpg"), folder_label("1.jpg")
    ('cat', 'cat', None)
    >>> folder_label("00001/000010002.jpg"), folder_label("00001/cat.jpg")
    (None, '00001')
    """
    *folders, name = path.split("/")
    stem = name.partition(".")[0]
    for folder in reversed(folders):
        is_shard = len(folder) >= _SHARD_DIGITS and folder.isdecimal() and stem.isdecimal()
        is_number = is_shard and stem.startswith(folder) and len(stem) > len(folder)
        if folder and folder.lower() not in _NO_CLASSES and not is_number:
            return folder
    return None


class Names:
    """Makes names unique: the second x becomes x#2.

    Args:
        fixed: Names already decided, by number of the call to `take`.
    """

    def __init__(self, fixed: Iterable[tuple[int, str]] = ()) -> None:
        self._counts: dict[str, int] = {}
        self._fixed = dict(fixed)
        self._num_taken = 0

    def take(self, name: str) -> str:
        """Return `name` if it is free, else `name` with the smallest free number as a suffix."""
        self._num_taken += 1
        if (fixed := self._fixed.get(self._num_taken - 1)) is not None:
            return fixed
        if name not in self._counts:
            self._counts[name] = 1
            return name
        count = self._counts[name] + 1
        while f"{name}#{count}" in self._counts:
            count += 1
        self._counts[name] = count
        self._counts[f"{name}#{count}"] = 1
        return f"{name}#{count}"


def shortest_tails(paths: Sequence[str]) -> list[str]:
    """Name each path by its shortest unique tail; equal paths are numbered.

    >>> shortest_tails(["/x/images", "/y/images"]), shortest_tails(["/x", "/x"])
    (['x/images', 'y/images'], ['x', 'x#2'])
    """
    parts = [path.split("/") for path in paths]
    distinct = len(set(paths))
    longest = max((len(part) for part in parts), default=0)
    for depth in range(1, longest + 1):
        tails = ["/".join(part[-depth:]) for part in parts]
        if len(set(tails)) == distinct:
            break
    names = Names()
    return [names.take(tail or "/") for tail in tails] if paths else []
