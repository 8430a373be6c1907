"""One input of a crawl on its way to a verdict: what its source gives, and what was judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Reason = Literal[
    "unreadable",  # the file system, the archive or the server gave an error
    "too_big",  # more than max_bytes
    "empty",
    "changed",  # other bytes than when the inputs were listed
    "bad_record",  # a damaged record or member of an archive
    "not_image",  # no format of the allow-list
    "too_many_pixels",  # more than max_pixels, by the header
    "too_many_scans",  # more than max_scans, by the header
    "metadata_too_big",  # more than max_metadata_bytes
    "truncated",
    "undecodable",
    "unsupported_depth",  # 32-bit integers or floats
    "unsupported_codec",  # lossless, arithmetic or 12-bit JPEG, and others the trainer cannot read
    "decoder_refuses",  # what would be stored does not decode in the decoder that trains
    "decoder_crash",  # a decoder ended its process
    "timeout",  # more than max_seconds
    "min_side",
    "max_aspect",
    "low_information",  # one colour
    "placeholder",  # the same bytes more than max_repeats times
]
"""Why an input is left out; from min_side on, by a filter."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input, read."""

    name: str
    """Unique among all inputs and plain Unicode: the name of its source, then the path below it;
    a member of an archive stands behind the archive's path and an exclamation mark."""
    data: bytes = b""
    """Its bytes; empty where there is a problem."""
    problem: Reason | None = None
    """Why there are no bytes."""
    label: str | None = None
    caption: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Whatever else its source says of it, as text: url, license."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one input, and what a shard stores of it."""

    outcome: Literal["accepted", "quarantined", "filtered"]
    reason: Reason | None = None
    """None where accepted."""
    content_hash: str = ""
    """xxh3 (128 bit) of the input's bytes, hex; empty where it was not read."""
    image_format: str = ""
    """JPEG, PNG, GIF, ...; empty where unknown."""
    width: int = 0
    """px, upright, before any reduction; 0 where it was not decoded."""
    height: int = 0
    """px, upright, before any reduction; 0 where it was not decoded."""
    notes: tuple[str, ...] = ()
    """What was done to it or found in it, for the ledger's counts: oriented, alpha, first_frame,
    high_depth, cmyk, metadata_dropped, metadata_broken, trailing_bytes, leading_bytes,
    missing_end, partial, reduced."""
    stored: bytes = b""
    """What a shard holds; empty unless accepted."""
    stored_width: int = 0
    """px."""
    stored_height: int = 0
    """px."""
    as_is: bool = False
    """Whether `stored` is the input's own image data, without metadata."""
    near_words: NDArray[np.uint64] | None = None
    """(W,), perceptual hash of the upright image; None where it was not asked for."""
    thumbnail: bytes = b""
    """Small JPEG, 96 px on the long side at most; empty unless filtered."""
