"""What a user can set about sharding."""

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config

_MAX_STORED_SIDE = {"jpeg": 65_500, "webp": 16_383}
_LEAST_MAX_SIDE = 320
"""px; a stored image not much larger than the 255 px that jigsaw cuts its cells from comes to the
tiles almost unscaled, and the phase of its 8 px JPEG blocks then names the cell."""


class ShardConfig(Config):
    """Limits of the gate, rules of the filters, and what is stored, and how."""

    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger inputs are quarantined unread."""
    max_pixels: int = Field(50_000_000, ge=1, le=150_000_000)
    """Images whose header declares more are quarantined before a pixel is decoded."""
    max_scans: int = Field(100, ge=1)
    """JPEGs of more scans are quarantined before a pixel is decoded; progressive ones have ten."""
    max_metadata_bytes: int = Field(4 * 2**20, ge=0)
    """Images whose EXIF, profiles, comments and text, unpacked, exceed this are quarantined."""
    max_seconds: float = Field(5.0, gt=0)
    """Time for one image; its process is ended after that."""
    max_memory_mb: int = Field(1024, ge=256)
    """Memory of the process that decodes, MiB."""
    accept_partial: bool = False
    """Whether JPEGs that are cut are accepted, with gray for what is missing."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB behind transparent pixels."""

    min_side: int = Field(32, ge=1)
    """Images with a shorter side are left out, px."""
    max_aspect: float = Field(10.0, ge=1.0)
    """Images whose long side exceeds this many short sides are left out."""
    max_repeats: int | None = Field(100, ge=1)
    """Bytes that more inputs hold than this are a placeholder and left out; null keeps one."""

    max_side: int = Field(512, ge=1)
    """Images are reduced until their short side is at most this, px."""
    store_as: Literal["jpeg", "webp"] = "jpeg"
    """Format of what is encoded again; JPEGs within bounds keep their image data."""
    quality: int = Field(90, ge=50, le=100)
    """Of what is encoded again."""
    subsampling: Literal["444", "420"] = "444"
    """Chroma of what is encoded again as JPEG."""

    near_duplicates: bool = True
    """Whether images that look alike count as duplicates, not only equal bytes."""

    samples_per_shard: int = Field(1000, ge=1)
    """Upper bound; the shards of one set differ by at most one sample."""
    bytes_per_shard: int | None = Field(None, ge=1)
    """Upper bound for the images of a shard, bytes, beside samples_per_shard."""

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
                "near the size of the tiles' crop keep the phase of their JPEG blocks, and it "
                "tells where a tile lies; raise it."
            )
        if any(not 0 <= value <= 255 for value in self.background):
            raise ValueError(f"background (={self.background}) must be three of 0 to 255.")
        return self
