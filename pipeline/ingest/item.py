"""One input of a crawl: what its source gives, and the gate's verdict on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

Reason = Literal[
    "unreadable",  # the file system, the archive or the server reported an error
    "forbidden",  # by the server: HTTP status 401 or 403, or the store's permissions
    "missing",  # at the server: HTTP status 404
    "gone",  # at the server: HTTP status 410
    "too_big",  # more than max_bytes
    "empty",
    "changed",  # since the inputs were listed
    "bad_record",  # a damaged record or member of an archive
    "unknown_coding",  # of an HTTP body, named in the sample's metadata
    "not_image",  # no allowed format
    "too_many_pixels",  # the header declares more than max_pixels
    "too_many_scans",  # more than max_scans
    "metadata_too_big",  # more than max_metadata_bytes
    "truncated",
    "undecodable",
    "unsupported_depth",  # 32-bit or signed integers, floats
    "unsupported_codec",  # 12-bit or hierarchical JPEG, or another the trainer cannot read
    "decoder_refuses",  # the trainer's decoder fails on what would be stored
    "decoder_crash",  # the decoder killed its process
    "timeout",  # more than max_seconds
    "min_side",
    "max_aspect",
    "low_information",  # one colour
    "placeholder",  # the same bytes more than max_repeats times
]
"""Why an input is excluded; from min_side on, by a filter."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input, read."""

    name: str
    """Unique among all inputs and plain Unicode: source name, then the path below the source; for
    a member of an archive, the archive's name, an exclamation mark and the member's path."""
    data: bytes = b""
    """Content; empty where there is a problem."""
    problem: Reason | None = None
    """Why there is no content."""
    label: str | None = None
    caption: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Whatever else its source says of it, as text: url, license."""
    is_inferred: bool = False
    """Whether the label is only the name of a folder, not what the source states."""
    notes: tuple[str, ...] = ()
    """What of it could not be used, counted with the notes of its verdict: label_list, ..."""

    @classmethod
    def make(cls, name: str, content: "bytes | Reason", **annotations: Any) -> Self:
        """Make the item of an input's bytes, or of the reason why there are none."""
        if isinstance(content, bytes):
            return cls(name, content, **annotations)
        return cls(name, problem=content, **annotations)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fate of one input, and what a shard stores of it."""

    outcome: Literal["accepted", "quarantined", "filtered"]
    reason: Reason | None = None
    """None where accepted."""
    content_hash: str = ""
    """xxh3 (128 bit) of the input's bytes, hex; empty if it was not read."""
    image_format: str = ""
    """JPEG, PNG, GIF, ...; empty where unknown."""
    width: int = 0
    """px, upright, before any reduction; 0 if it was not decoded."""
    height: int = 0
    """px, upright, before any reduction; 0 if it was not decoded."""
    notes: tuple[str, ...] = ()
    """What was done to it or found in it, counted in the ledger: oriented, alpha, first_frame,
    high_depth, cmyk, metadata_dropped, metadata_broken, trailing_bytes, leading_bytes,
    missing_end, partial, reduced. Where a library failed in a way that it does not document, its
    error as text."""
    stored: bytes = b""
    """Bytes for the shard; empty unless accepted."""
    stored_width: int = 0
    """px."""
    stored_height: int = 0
    """px."""
    as_is: bool = False
    """Whether `stored` is the input's own image data, without metadata."""
    near_words: NDArray[np.uint64] | None = None
    """(WORDS,), perceptual hash of the upright image; None where not requested."""
    thumbnail: bytes = b""
    """JPEG of at most 96 px on the long side; empty unless filtered."""
