"""A verdict as bytes and back; data only, so that a decoder that was taken over says no more."""

import dataclasses
import json
import struct

import numpy as np

from pipeline.crawl.item import Judged

_SIZES = struct.Struct("<4I")  # JSON, stored image, near words, thumbnail.
_BLOBS = ("stored", "near_words", "thumbnail")
_PLAIN = [item.name for item in dataclasses.fields(Judged) if item.name not in _BLOBS]


def judged_to_bytes(judged: Judged, data: bytes) -> bytes:
    """Write the verdict on `data` so that `judged_from_bytes` reads an equal one.

    Where the input is stored as it came it is not written once more.
    """
    same = bool(data) and judged.stored == data
    facts = {name: getattr(judged, name) for name in _PLAIN}
    words = b"" if judged.near_words is None else judged.near_words.astype("<u8").tobytes()
    stored = b"" if same else judged.stored
    blobs = json.dumps([facts, same]).encode(), stored, words, judged.thumbnail
    return b"".join([_SIZES.pack(*map(len, blobs)), *blobs])


def judged_from_bytes(answer: bytes, data: bytes) -> Judged:
    """Read the verdict on `data`.

    Raises:
        ValueError: It is none.
    """
    try:
        facts, stored, words, thumbnail = _split(answer)
        raw, same = json.loads(facts)
        raw["notes"] = tuple(raw["notes"])
        near = np.frombuffer(words, "<u8").astype(np.uint64) if words else None
        stored = data if same else stored
        return Judged(**raw, stored=stored, near_words=near, thumbnail=thumbnail)
    except (TypeError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"no verdict: {error}") from None


def _split(data: bytes) -> list[bytes]:
    start, blobs = _SIZES.size, []
    for size in _SIZES.unpack_from(data):
        blobs.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"{len(data)} bytes hold no verdict of {start}.")
    return blobs
