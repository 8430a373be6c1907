"""How unusable samples are named, everywhere."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["hash", "header", "shard", "decode", "purged"]
"""Bytes differ from their hash; no size in the header; the shard or its index is missing or was
replaced; bytes are intact but do not decode; the sample was purged."""


class DamageError(RuntimeError):
    """Bytes differ from those that were written; names shard, key and offset."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample that cannot be used."""

    sample_id: int
    shard: str
    key: str
    """Empty if the shard's index cannot be read."""
    offset: int
    """First byte of the image in the tar, -1 if the index cannot be read."""
    reason: Reason
    detail: str

    def __str__(self) -> str:
        where = f"shard {self.shard}"
        if self.offset >= 0:
            where += f", key {self.key}, offset {self.offset}"
        return f"{where}: {self.detail}"
