"""What a sample in a tar says: its key, its files, its label."""

import json
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import ConfigError
from pipeline.shards.headers import HeaderReason
from pipeline.shards.members import gather
from pipeline.shards.tar import Member, walk_tar

MAX_LABEL = 1_000_000

Reason = (
    HeaderReason
    | Literal[
        "no_key",  # no dot in the base name, or nothing before the first one
        "no_image",  # no member has an extension of an image that the trainer decodes
    ]
)


@dataclass(slots=True)
class RawSample:
    """An image in a tar, and its notes."""

    key: str
    """Names it in its shard."""
    start: int
    """First byte of its span."""
    members: dict[str, Member] = field(default_factory=dict)
    """Notes by extension: cls, json, txt."""


def plain_text(text: str) -> str:
    """Escape halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def plain_key(name: str) -> str:
    r"""Write the bytes of a name that are not UTF-8 as \xNN, which tables and JSON can hold."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_span(span: bytes) -> dict[str, bytes]:
    """Split the span of one sample into its files, by ending."""
    end_mark = bytes(1024)  # Only the span of the last sample has one.
    buffer = memoryview(span + end_mark)
    members = list(walk_tar(buffer, "of a sample"))
    samples = gather([member.name for member in members]).samples
    sample = next(sample for sample in samples if sample.key)  # Others stand alone.
    mine = zip(sample.endings, (members[place] for place in sample.places), strict=True)
    return {ending: bytes(buffer[m.offset : m.offset + m.size]) for ending, m in mine}


def read_label(buffer: memoryview, sample: RawSample, shard: str) -> int | str | None:
    """Read the class of a sample: a number from .cls or .json, a name from .json, or None.

    A .json that is not a mapping, or whose "label" is neither number nor text, gives None.

    Raises:
        ConfigError: The number is out of range, or .cls holds no number.
    """
    number = sample.members.get("cls")
    if number is not None:
        text = bytes(buffer[number.offset : number.offset + min(number.size, 32)]).strip()
        label = int(text) if text.isdigit() else None
        return _check_label(label, text.decode("ascii", "backslashreplace"), sample, shard)
    about = sample.members.get("json")
    if about is None:
        return None
    raw = bytes(buffer[about.offset : about.offset + about.size])
    if b'"label"' not in raw:  # Most have none, and parsing costs more than all the rest.
        return None
    found = _parse_label(raw)
    return _check_label(found, str(found), sample, shard) if isinstance(found, int) else found


def _parse_label(raw: bytes) -> int | str | None:
    try:
        about = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    label = about.get("label") if isinstance(about, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    if isinstance(label, int):
        return label
    return plain_text(label) or None


def _check_label(label: int | None, shown: str, sample: RawSample, shard: str) -> int:
    if label is None or not 0 <= label <= MAX_LABEL:
        raise ConfigError(
            f"label (={shown}) of key {sample.key} in shard {shard} is not a class number from 0 "
            f"to {MAX_LABEL}; write the shard with such numbers, or without labels."
        )
    return label
