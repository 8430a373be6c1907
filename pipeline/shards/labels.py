"""Any value that a source gives as a label into a class: one rule for all sources and commands."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

LabelProblem = Literal[
    "boolean", "fraction", "negative", "list", "mapping", "unknown_class", "type"
]
"""Why a value is no class."""

_NO_LABEL = -1
"""What webdataset and torchvision write where there is none."""
_NAN_TEXTS = frozenset(("nan", "NaN"))
"""What Python and JSON write of a number that is not there."""
_EXACT = 2**53
"""Larger floats are not exact."""
_MAX_DIGITS = 18
_whole = re.compile(r"([+-]?)(\d+)(?:\.0*)?", re.ASCII).fullmatch


class Label(NamedTuple):
    """The class that a value names, or why it names none; both None where there is no label."""

    name: str | None = None
    problem: LabelProblem | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is counted of it: label_list, label_boolean, ..."""
        return () if self.problem is None else (f"label_{self.problem}",)


_NONE = Label()


def to_label(value: object, names: Sequence[str] = ()) -> Label:
    r"""Read a label.

    Null, NaN, an empty text and -1 are no label. A whole number is one class however it is written;
    any other text names its class as it stands.

    Args:
        value: Of a column, of JSON or of a text file.
        names: Classes by number, where the source declares them.

    >>> [to_label(value).name for value in (3, 3.0, "3", "3.0", " 3\n", "cat", -1, "", None)]
    ['3', '3', '3', '3', '3', 'cat', None, None, None]
    >>> to_label(1, ["cat", "dog"]).name, to_label(7, ["cat", "dog"]).problem, to_label([1]).problem
    ('dog', 'unknown_class', 'list')
    """
    match value:
        case None:
            return _NONE
        case bool():
            return Label(problem="boolean")
        case int():
            return _numbered(value, names)
        case float():
            return _of_float(value, names)
        case str():
            return _of_text(value, names)
        case Mapping():
            return Label(problem="mapping")
        case list() | tuple():
            return Label(problem="list")
    return Label(problem="type")


def _numbered(number: int, names: Sequence[str]) -> Label:
    if number == _NO_LABEL:
        return _NONE
    if number < 0:
        return Label(problem="negative")
    if not names:
        return Label(str(number)) if number < 10**_MAX_DIGITS else Label(problem="type")
    if number >= len(names):
        return Label(problem="unknown_class")
    return Label(plain_text(names[number])) if names[number] else _NONE


def _of_float(number: float, names: Sequence[str]) -> Label:
    if math.isnan(number):
        return _NONE
    is_whole = abs(number) <= _EXACT and number.is_integer()
    return _numbered(int(number), names) if is_whole else Label(problem="fraction")


def _of_text(text: str, names: Sequence[str]) -> Label:
    stripped = text.strip()
    if not stripped or stripped in _NAN_TEXTS:
        return _NONE
    if text in names:
        return Label(plain_text(text))
    found = _whole(stripped)
    if found is None or len(found[2]) > _MAX_DIGITS:
        return Label(plain_text(text))
    return _numbered(int(found[1] + found[2]), names)


def number_of(name: str) -> int | None:
    """Return the number that a class is, None where it is a name.

    >>> number_of("12"), number_of("012"), number_of("cat")
    (12, None, None)
    """
    is_number = name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")
    return int(name) if is_number and len(name) <= _MAX_DIGITS else None


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort classes: numbers by their value, then names.

    >>> sort_classes(["10", "cat", "9", "ant"])
    ['9', '10', 'ant', 'cat']
    """

    def key(name: str) -> tuple[bool, int, str]:
        number = number_of(name)
        return number is None, number or 0, name

    return sorted(names, key=key)


def plain_text(text: str) -> str:
    """Escape halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
