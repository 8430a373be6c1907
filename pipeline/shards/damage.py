"""What a sample that cannot be used is called, everywhere."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["hash", "header", "shard", "decode", "purged"]
"""Bytes differ from their hash; no size can be read; the shard or its index is not there or another
one; the bytes are whole but the decoder refuses them, or but they must not be shown any more."""


class DamageError(RuntimeError):
    """Bytes are not the bytes that were written; names shard, key and offset."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample that cannot be used."""

    sample_id: int
    shard: str
    key: str
    """Empty where the shard's index cannot be read."""
    offset: int
    """First byte of the image in the tar, -1 where the index cannot be read."""
    reason: Reason
    detail: str

    def __str__(self) -> str:
        where = f"shard {self.shard}"
        if self.offset >= 0:
            where += f", key {self.key}, offset {self.offset}"
        return f"{where}: {self.detail}"
