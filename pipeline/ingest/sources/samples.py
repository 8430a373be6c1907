"""Members of an archive into samples: by WebDataset's rule where they pair, else one by one."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.shards.labels import plain_text, to_label
from pipeline.shards.samples import split_name

_IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
)
_SIDECARS = ("cls", "json", "txt")
_MAX_MEMBERS = 16
"""Members of a sample; they are in memory together."""
_MAX_SIDECAR_BYTES = 2**20
"""Larger sidecars are ignored."""

T = TypeVar("T")


def is_sidecar(name: str) -> bool:
    """Tell by its name whether a member may hold the annotations of an image next to it."""
    return split_name(name)[1] in _SIDECARS


def group_by_key(members: Iterable[T], name_of: Callable[[T], str | None]) -> Iterator[list[T]]:
    """Group adjacent members of one key, at most 16; one without a key or a name stands alone."""
    group: list[T] = []
    group_key = ""
    for member in members:
        key = split_name(name_of(member) or "")[0]
        if group and (key != group_key or not key or len(group) == _MAX_MEMBERS):
            yield group
            group = []
        group.append(member)
        group_key = key
    if group:
        yield group


def find_inputs(names: list[str | None]) -> tuple[list[int], dict[str, int]]:
    """Tell which members of a group are inputs, and which are their sidecars.

    An image with a .cls, .json or .txt of the same key is a WebDataset sample, whose other members
    are no inputs. Without a sidecar every member is an input.

    Returns:
        Positions of the inputs; extension -> position of the sidecars.
    """
    extensions = [split_name(name or "")[1] for name in names]
    sidecars = {extension: i for i, extension in enumerate(extensions) if extension in _SIDECARS}
    images = [
        i for i, extension in enumerate(extensions) if extension.rpartition(".")[2] in _IMAGES
    ]
    if not (sidecars and images):
        return list(range(len(names))), {}
    plain = [i for i in images if "." not in extensions[i]]
    return plain or images, sidecars


def read_sidecars(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Read label, caption and metadata from the sidecars of a sample, by extension."""
    contents = {key: data for key, data in contents.items() if len(data) <= _MAX_SIDECAR_BYTES}
    annotations = annotate(parse_json_object(contents.get("json", b"")) or {})
    label = contents.get("cls", b"").decode("utf-8", "backslashreplace").strip()
    caption = contents.get("txt", b"").decode("utf-8", "backslashreplace").strip()
    if label:
        annotations |= _stated(label)
    if caption:
        annotations["caption"] = caption
    return annotations


def parse_json_object(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None where the text is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def annotate(fields: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    """Sort the fields of an image into label, caption and metadata; only scalars are kept.

    A nested mapping named `metadata`, as in Tessera's shards, is flattened.

    Args:
        fields: What a source says of the image.
        names: Classes by number, where the source declares them.
    """
    nested = fields.get("metadata")
    merged = {**nested, **fields} if isinstance(nested, dict) else dict(fields)
    label = merged.pop("label", None)
    texts = {plain_text(key): text for key, value in merged.items() if (text := _as_text(value))}
    caption = texts.pop("caption" if "caption" in texts else "text", None)
    return {**_stated(label, names), "caption": caption, "metadata": texts}


def _stated(value: object, names: Sequence[str] = ()) -> dict[str, Any]:
    label = to_label(value, names)
    return {"label": label.name, "notes": label.notes}


def _as_text(value: object) -> str | None:
    """Write a scalar as text; None for null, NaN and containers."""
    if isinstance(value, bool):
        return str(value).lower()
    is_there = isinstance(value, str | int | float) and value == value
    return plain_text(str(value)) if is_there else None
