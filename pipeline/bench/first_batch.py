"""Seconds from the start of a fresh Python to the first batch of a million samples."""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from pipeline.bench.repeated import shrink, write_repeated

SHARDS, SAMPLES = 1_000, 1_000
_SIDE = 96  # px; small images, so that the set is made quickly.
_BATCH = 64
_ROOT = Path(__file__).parents[2]


def first_batch(images: list[bytes], folder: Path, *, threads: int, times: int) -> dict[str, float]:
    """Start fresh processes on 10^6 samples in 1,000 indexed shards.

    Returns:
        Medians in seconds: `seconds` in all, of it `imports` (with the start of Python) and `own`
        (open, order, plan, graph, first batch).
    """
    small = shrink(images, SAMPLES, _SIDE)
    write_repeated(small, folder, num_shards=SHARDS, samples_per_shard=SAMPLES)
    runs = [_start(folder, threads) for _ in range(times)]
    return {name: median(one[name] for one in runs) for name in runs[0]}


def _start(folder: Path, threads: int) -> dict[str, float]:
    # The clock is the machine's: a child can subtract its parent's reading.
    command = [sys.executable, "-m", "pipeline.bench.first_batch", str(folder), str(threads)]
    command.append(repr(time.monotonic()))
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"first_batch failed: {done.stderr.strip().splitlines()[-1]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Take one batch and say when."""
    folder, threads, started = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    from pipeline.bench.ours import graph_options, make_loader

    imported = time.monotonic()
    next(make_loader(folder, _BATCH).batches(graph_options(_BATCH, threads)))
    ready = time.monotonic()
    seconds = {"seconds": ready - started, "imports": imported - started, "own": ready - imported}
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
