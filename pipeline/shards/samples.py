"""What a sample in a tar says: its key, its files, its label."""

import json
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import ConfigError
from pipeline.shards.headers import HeaderReason
from pipeline.shards.labels import Label, number_of, to_label
from pipeline.shards.members import gather
from pipeline.shards.tar import Member, walk_tar

MAX_LABEL = 1_000_000
_UNLABELLED = Label()

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


def read_label(buffer: memoryview, sample: RawSample, shard: str) -> Label:
    """Read the class of a sample from its .cls, or else from the "label" of its .json.

    Raises:
        ConfigError: It is a number that is too large for an index.
    """
    label = _UNLABELLED
    if (member := sample.members.get("cls")) is not None:
        label = to_label(_read(buffer, member).decode("utf-8", "backslashreplace").strip())
    if label == _UNLABELLED and (member := sample.members.get("json")) is not None:
        raw = _read(buffer, member)
        if b'"label"' in raw:  # Most have none, and parsing costs more than all the rest.
            label = _parse_label(raw)
    if label.name is not None and label.name.isascii() and label.name.isdecimal():
        _check_number(label.name, sample, shard)
    return label


def _read(buffer: memoryview, member: Member) -> bytes:
    return bytes(buffer[member.offset : member.offset + member.size])


def _parse_label(raw: bytes) -> Label:
    try:
        about = json.loads(raw)
    except (ValueError, RecursionError):
        return _UNLABELLED
    return to_label(about.get("label")) if isinstance(about, dict) else _UNLABELLED


def _check_number(name: str, sample: RawSample, shard: str) -> None:
    number = number_of(name)
    if number is None or number > MAX_LABEL:
        raise ConfigError(
            f"label (={name[:32]}) of key {sample.key} in shard {shard} is not a class number from "
            f"0 to {MAX_LABEL}; write the shard with such numbers, or without labels."
        )
