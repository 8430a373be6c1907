"""Configuration of sharding."""

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config

_MAX_STORED_SIDE = {"jpeg": 65_500, "webp": 16_383}
_LEAST_MAX_SIDE = 320
"""px; an image stored at little more than jigsaw's 255 px crop reaches the tiles almost unscaled,
and the phase of its 8 px JPEG blocks then gives the cell away."""


class ShardConfig(Config):
    """Limits of the gate, rules of the filters, and how images are stored."""

    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger inputs are quarantined without being read."""
    max_pixels: int = Field(50_000_000, ge=1, le=150_000_000)
    """Images whose header declares more are quarantined before any pixel is decoded."""
    max_scans: int = Field(100, ge=1)
    """JPEGs of more scans are quarantined before a pixel is decoded; progressive ones have ten."""
    max_metadata_bytes: int = Field(4 * 2**20, ge=0)
    """Images with more EXIF, profiles, comments and text, decompressed, are quarantined."""
    max_seconds: float = Field(5.0, gt=0)
    """Time limit for one image; its process is killed after that."""
    max_memory_mb: int = Field(1024, ge=256)
    """Memory limit of the decoding process, MiB."""
    accept_partial: bool = False
    """Whether truncated JPEGs are accepted, with gray for the missing part."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB behind transparent pixels."""

    min_side: int = Field(32, ge=1)
    """Images with a shorter side are excluded, px."""
    max_aspect: float = Field(10.0, ge=1.0)
    """Images of a higher ratio of long to short side are excluded."""
    max_repeats: int | None = Field(100, ge=1)
    """Content shared by more inputs is a placeholder and excluded; null keeps one copy."""

    max_side: int = Field(512, ge=1)
    """Images are reduced until their short side is at most this, px."""
    store_as: Literal["jpeg", "webp"] = "jpeg"
    """Format of re-encoded images; JPEGs within bounds keep their image data."""
    quality: int = Field(90, ge=50, le=100)
    """Quality of re-encoded images."""
    subsampling: Literal["444", "420"] = "444"
    """Chroma subsampling of re-encoded JPEGs."""

    near_duplicates: bool = True
    """Whether images that look alike count as duplicates, not only those of equal bytes."""

    samples_per_shard: int = Field(1000, ge=1)
    """Upper bound; the shards of one set differ by at most one sample."""
    bytes_per_shard: int | None = Field(None, ge=1)
    """Upper bound for the images of a shard, bytes, in addition to samples_per_shard."""

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        limit = _MAX_STORED_SIDE[self.store_as]
        if self.max_side * self.max_aspect > limit:
            raise ValueError(
                f"max_side (={self.max_side}) * max_aspect (={self.max_aspect}) must be at most "
                f"{limit}, the longest side of a {self.store_as}; lower one of them."
            )
        if self.max_side < _LEAST_MAX_SIDE:
            raise ValueError(
                f"max_side (={self.max_side}) must be at least {_LEAST_MAX_SIDE}: images stored "
                "near the size of the tiles' crop keep the phase of their JPEG blocks, which "
                "gives away where a tile lies; raise it."
            )
        if any(not 0 <= value <= 255 for value in self.background):
            raise ValueError(f"background (={self.background}) must be three values of 0 to 255.")
        return self
