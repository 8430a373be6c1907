"""What the notes beside an image in an archive say: label, caption and metadata."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import folder_label
from pipeline.shards.labels import plain_text, to_label
from pipeline.shards.members import Gathered, Input, NoteReason


class NoteCounter:
    """Reads what is said of the inputs of an archive, and counts what says nothing.

    Args:
        chunk: The archive, or a part of it.
        dropped: Takes the counts by reason.
    """

    def __init__(self, chunk: Chunk, dropped: Counter[str]) -> None:
        self.lost: set[int] = set()
        """Places of notes that cannot be used."""
        self._chunk, self._dropped = chunk, dropped
        self._stem = chunk.archive.rpartition("/")[2].partition(".")[0]

    def count(self, gathered: Gathered, names: Sequence[str | None]) -> None:
        """Count the members that are neither inputs nor notes, of those that the globs select."""
        unread = [(place, "not_read") for place in gathered.unread()]
        for place, reason in [*gathered.junk, *unread]:
            if self._chunk.wants(self._chunk.member(names[place] or "")):
                self._dropped[reason] += 1

    def lose(self, place: int, reason: NoteReason) -> None:
        """Count a note that cannot be used, once."""
        if place not in self.lost:
            self.lost.add(place)
            self._dropped[reason] += 1

    def read(self, name: str, one: Input, contents: Mapping[str, bytes]) -> dict[str, Any]:
        """Read label, caption and metadata of an input.

        Its folder is its label where its notes state none, unless the folder bears the archive's
        name, or a note that could state one was lost.

        Args:
            name: Of the input.
            one: Its place, and its notes.
            contents: Content of each note that could be read, by extension.
        """
        folder = folder_label(self._chunk.path_of(name))
        if not one.notes:
            return {"label": folder, "is_inferred": True}
        is_told = len(contents) == len(one.notes) and folder != self._stem
        said, is_broken = read_notes(contents, folder if is_told else None)
        if is_broken:
            self.lose(one.notes["json"], "unreadable")
        return said


def read_notes(contents: Mapping[str, bytes], folder: str | None) -> tuple[dict[str, Any], bool]:
    """Read what the notes of an image say; its folder is its label where they state none.

    Args:
        contents: Content of each note, by extension: cls, json, txt.
        folder: Label by the folder, if any.

    Returns:
        label, caption, metadata and notes, and whether a .json is no JSON object.
    """
    said = read_sidecars(contents)
    if said["label"] is None and not _states_label(contents):
        said |= {"label": folder, "is_inferred": True}
    broken = "json" in contents and parse_json_object(contents["json"]) is None
    return said, broken


def _states_label(contents: Mapping[str, bytes]) -> bool:
    """Tell whether notes state that there is no label: -1."""
    if contents.get("cls", b"").strip():
        return True
    label = (parse_json_object(contents.get("json", b"")) or {}).get("label")
    return label is not None


def read_sidecars(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Read label, caption and metadata from the sidecars of a sample, by extension."""
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
