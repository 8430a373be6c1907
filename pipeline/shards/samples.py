"""Group the members of a tar into samples, by WebDataset's rule: key, image, label."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import ConfigError
from pipeline.shards.headers import HeaderReason
from pipeline.shards.labels import Label, number_of, to_label
from pipeline.shards.tar import Member, shard_error, walk_tar

MAX_LABEL = 1_000_000

Reason = (
    HeaderReason
    | Literal[
        "no_key",  # no dot in the base name, or nothing before the first one
        "no_image",  # no member has an image extension
        "several_images",  # often names with dots, which WebDataset splits at the first
    ]
)

_IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp"))
_is_note = re.compile(r"__[^/]*__(/|$)").match  # writers' notes, which WebDataset skips too


@dataclass(slots=True)
class RawSample:
    """Adjacent members of one key, in tar order."""

    key: str
    """The name of its only member if that has no key."""
    start: int
    """First byte of the first member."""
    members: dict[str, Member] = field(default_factory=dict)
    """Members by ending, what follows the first dot, in lower case; empty without a key."""

    def find_image(self) -> Member | Reason:
        """Return the only member with an image extension, or why the sample is unusable."""
        images = [
            member
            for ending, member in self.members.items()
            if ending.rpartition(".")[2] in _IMAGE_ENDINGS
        ]
        if not self.members:
            return "no_key"
        if not images:
            return "no_image"
        if len(images) > 1:
            return "several_images"
        return images[0] if images[0].size else "empty"


def plain_key(name: str) -> str:
    r"""Write the bytes of a name that are not UTF-8 as \xNN, which tables and JSON can hold."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and ending, both empty without a key.

    >>> split_name("a.b/001.seg.PNG"), split_name("a/.jpg"), split_name("README")
    (('a.b/001', 'seg.png'), ('', ''), ('', ''))
    """
    last_part = name.rfind("/") + 1
    dot = name.find(".", last_part)
    return (name[:dot], name[dot + 1 :].lower()) if dot > last_part else ("", "")


def group_members(members: Iterable[Member], shard: str) -> list[RawSample]:
    """Join adjacent members of one key, in tar order.

    A member without a key is a sample of its own, and does not split the sample around it.

    Raises:
        ShardError: A key reappears after another one, or repeats an ending: the shard is not in
            sample order, or samples were written twice.
    """
    samples: list[RawSample] = []
    seen: set[str] = set()
    sample = RawSample("", 0)
    for member in members:
        if _is_note(member.name):
            continue
        key, ending = split_name(member.name)
        if not key:
            samples.append(RawSample(member.name, member.start))
            continue
        if key != sample.key:
            sample = RawSample(key, member.start)
            samples.append(sample)
            if key in seen:
                raise shard_error(shard, member.start, f"key {key!r} occurs twice")
            seen.add(key)
        if ending in sample.members:
            raise shard_error(shard, member.start, f"key {key!r} occurs twice")
        sample.members[ending] = member
    return samples


def split_span(span: bytes) -> dict[str, bytes]:
    """Split the span of one sample into its files, by ending."""
    end_mark = bytes(1024)  # Only the span of the last sample has one.
    buffer = memoryview(span + end_mark)
    samples = group_members(walk_tar(buffer, "of a sample"), "of a sample")
    sample = next(sample for sample in samples if sample.members)  # Others have no key.
    return {e: bytes(buffer[m.offset : m.offset + m.size]) for e, m in sample.members.items()}


def read_label(buffer: memoryview, sample: RawSample, shard: str) -> Label:
    """Read the class of a sample from its .cls, or else from the "label" of its .json.

    Raises:
        ConfigError: It is a number that is too large for an index.
    """
    label = Label()
    if (member := sample.members.get("cls")) is not None:
        label = to_label(_read(buffer, member).decode("utf-8", "backslashreplace").strip())
    if label == Label() and (member := sample.members.get("json")) is not None:
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
        return Label()
    return to_label(about.get("label")) if isinstance(about, dict) else Label()


def _check_number(name: str, sample: RawSample, shard: str) -> None:
    number = number_of(name)
    if number is None or number > MAX_LABEL:
        raise ConfigError(
            f"label (={name[:32]}) of key {sample.key} in shard {shard} is not a class number from "
            f"0 to {MAX_LABEL}; write the shard with such numbers, or without labels."
        )
