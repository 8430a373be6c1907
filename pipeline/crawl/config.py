"""What a user can set about sharding."""

from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config

_JPEG_MAX_SIDE = 65_500


class ShardConfig(Config):
    """Limits of the gate, rules of the filter, and the size of what is stored."""

    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger files are quarantined unread."""
    max_pixels: int = Field(50_000_000, ge=1, le=150_000_000)
    """Images whose header declares more are quarantined before a pixel is decoded."""
    min_side: int = Field(32, ge=1)
    """Images with a shorter side are left out, px."""
    max_aspect: float = Field(10.0, ge=1.0)
    """Images whose long side exceeds this many short sides are left out."""
    max_side: int = Field(512, ge=1)
    """Images are reduced until their short side is at most this, px."""
    samples_per_shard: int = Field(1000, ge=1)
    """Upper bound; the shards of one set differ by at most one sample."""

    @model_validator(mode="after")
    def _fits_a_jpeg(self) -> Self:
        if self.max_side * self.max_aspect > _JPEG_MAX_SIDE:
            raise ValueError(
                f"max_side (={self.max_side}) * max_aspect (={self.max_aspect}) must be at most "
                f"{_JPEG_MAX_SIDE}, the longest side of a JPEG; lower one of them."
            )
        return self
