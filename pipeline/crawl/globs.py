"""Which paths below a source are wanted: globs to include and to exclude."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import lru_cache


def is_wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether `path` matches one of `include`, where there are any, and none of `exclude`.

    A `*` stays within a folder, `**` does not, `?` is one character, `[ab]` one of several. A
    pattern without a slash is about the last part of the path, one that ends in a slash about
    everything below.

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
