"""A shard that is open: its index, and its tar mapped into memory."""

import mmap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.shards.first_use import complete_index
from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.manifest import ShardInfo, check_size


@dataclass(frozen=True, slots=True)
class MappedShard:
    """Costs a mapping, a file descriptor and about 60 bytes a sample."""

    index: ShardIndex
    ends: NDArray[np.int64]
    """(N,), byte behind each sample's span."""
    mapped: mmap.mmap
    """The whole tar, read-only."""
    held: ExitStack
    """What is let go with the shard: the mapping, then what the opener holds for it."""

    def read_span(self, row: int) -> bytes | None:
        """Copy a sample's span out of the mapping; None where it is not what was hashed.

        A copy, because what is mapped may change between the hash and the decode. And a mapped file
        that was cut ends the process where it is read, so its size is asked first.
        """
        end = self.ends.item(row)
        if self.mapped.size() < end:
            return None
        span = self.mapped[self.index.starts.item(row) : end]
        return span if xxhash.xxh3_64_intdigest(span) == self.index.span_hashes.item(row) else None


def map_shard(info: ShardInfo, path: Path, index_path: Path, held: ExitStack) -> MappedShard:
    """Open a shard that lies on this node; `held` becomes the shard's where all went well.

    Raises:
        ConfigError: The tar or the index is not the one of `info`.
        OSError: One of them cannot be read, or too many files are open.
    """
    check_size(path, info)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    held.callback(mapped.close)
    # Behind the mapping, which needs one file descriptor more: where they run out, it is the
    # mapping that says so, and not an index that seems damaged.
    index = read_index(index_path, sha256=info.index_sha256)
    if info.sha256 is None:
        with memoryview(mapped) as tar:
            index = complete_index(index, tar, index_path)
    ends = np.append(index.starts[1:], info.num_bytes)
    return MappedShard(index, ends, mapped, held.pop_all())
