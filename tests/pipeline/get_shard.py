"""Get one URL through the cache as another process would, and say so: `got BYTES MISSES`.

python get_shard.py FOLDER URL BYTES SHA256 {leave | hold | prefetch}
"""

import hashlib
import sys
from pathlib import Path

from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.remote.location import FileRequest


def main(folder, url, num_bytes, sha256, then):
    cache = ShardCache(CacheConfig(folder=Path(folder), budget_gb=0.002, reserve_gb=0))
    if then == "prefetch":
        cache.prefetch([FileRequest(url, int(num_bytes), sha256)])
        sys.stdin.readline()
        raise KeyboardInterrupt
    with cache:
        pin = cache.get(url, num_bytes=int(num_bytes), sha256=sha256)
        assert hashlib.sha256(pin.path.read_bytes()).hexdigest() == sha256
        sys.stdout.write(f"got {num_bytes} {cache.stats().misses}\n")
        sys.stdout.flush()
        if then == "hold":
            sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
