"""Members of an archive into inputs: by WebDataset's rule where they pair, else one by one."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pipeline.ingest.item import Item
from pipeline.ingest.sources.names import folder_label, member_name
from pipeline.ingest.sources.tar_stream import StreamMember
from pipeline.shards.samples import plain_text, split_name

_IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
)
_NOTES = ("cls", "json", "txt")
_MAX_MEMBERS = 16
"""Of a sample: they are held in memory together."""
_MAX_NOTE_BYTES = 2**20
"""Larger notes are passed over."""
_NO_LABEL = "-1"

T = TypeVar("T")


def is_note(name: str) -> bool:
    """Tell by its name whether a member may say something of an image beside it."""
    return split_name(name)[1] in _NOTES


def group(members: Iterable[T], name_of: Callable[[T], str | None]) -> Iterator[list[T]]:
    """Join adjacent members of one key, 16 at most; what has no key or no name stands alone."""
    joined: list[T] = []
    key = ""
    for member in members:
        found = split_name(name_of(member) or "")[0]
        if joined and (found != key or not key or len(joined) == _MAX_MEMBERS):
            yield joined
            joined = []
        joined.append(member)
        key = found
    if joined:
        yield joined


def find_inputs(names: list[str | None]) -> tuple[list[int], dict[str, int]]:
    """Tell which members of a group are inputs, and which are notes on them.

    An image with a .cls, .json or .txt beside it is a sample of WebDataset: what else belongs to
    it is no input. Without such a note each member is an input.

    Returns:
        Positions of the inputs; ending -> position of the notes.
    """
    endings = [split_name(name or "")[1] for name in names]
    notes = {ending: i for i, ending in enumerate(endings) if ending in _NOTES}
    images = [i for i, ending in enumerate(endings) if ending.rpartition(".")[2] in _IMAGES]
    if not (notes and images):
        return list(range(len(names))), {}
    plain = [i for i in images if "." not in endings[i]]
    return plain or images, notes


def read_group(archive: str, members: list[StreamMember]) -> Iterator[Item]:
    """Make the items of a group of members that have names; the names may still be taken."""
    inputs, notes = find_inputs([member.name for member in members])
    told = {ending: members[i].data for ending, i in notes.items()}
    about = _about({key: data for key, data in told.items() if len(data) <= _MAX_NOTE_BYTES})
    for i in inputs:
        member = members[i]
        assert member.name is not None
        name = member_name(archive, member.name)
        if notes:
            yield Item(name, member.data, member.problem, **about)
        else:
            label = folder_label(name.removeprefix(f"{archive}!"))
            yield Item(name, member.data, member.problem, label)


def _about(told: Mapping[str, bytes]) -> dict[str, Any]:
    about = describe(_parse(told.get("json", b"")))
    number = told.get("cls", b"").decode("utf-8", "backslashreplace").strip()
    caption = told.get("txt", b"").decode("utf-8", "backslashreplace").strip()
    if number:
        about["label"] = None if number == _NO_LABEL else number
    if caption:
        about["caption"] = caption
    return about


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(about: Mapping[str, Any]) -> dict[str, Any]:
    """Sort what is said of an image into label, caption and metadata; only plain values are kept.

    A metadata mapping within, as Tessera's shards have it, is opened.
    """
    inner = about.get("metadata")
    merged = {**inner, **about} if isinstance(inner, dict) else about
    texts = {plain_text(key): text for key, value in merged.items() if (text := as_text(value))}
    label = texts.pop("label", None)
    caption = texts.pop("caption" if "caption" in texts else "text", None)
    return {"label": None if label == _NO_LABEL else label, "caption": caption, "metadata": texts}


def as_text(value: object) -> str | None:
    """Write a plain value as text; None for null and for what has parts."""
    if isinstance(value, bool):
        return str(value).lower()
    return plain_text(str(value)) if isinstance(value, str | int | float) else None
