"""Whether the plan of the shards takes the same memory and time an input however many there are.

The inputs are synthetic: tables like those of a crawl's parts, without images. So ten million take
minutes, and only the driver's own work is measured: exact and near duplicates, the order of the
shards, and what becomes of every other input.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pipeline.bench.contest import Progress
from pipeline.bench.machine import memory_mib, watch
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.near.hash import SIDE, cosines
from pipeline.ingest.parts import SCHEMA
from pipeline.ingest.plan import make_plan

_ROWS_PER_TABLE = 500
_CYCLE = 100
"""Inputs that hold ten copies of others, ten broken ones and one near duplicate."""
_LOUDNESS, _MEAN = 60.0, 120.0  # Luma levels, as in photographs.
_NOISE = 2  # Luma levels by which a near duplicate differs at most.
_SAME = {
    "source": "crawl",
    "part": bytes(16),
    "offset": 0,
    "format": "JPEG",
    "width": 500,
    "height": 375,
    "stored_width": 500,
    "stored_height": 375,
    "as_is": True,
    "notes": [],
    "label": None,
    "is_inferred": False,
    "caption": None,
    "metadata": None,
}
"""What all inputs have in common."""


def measure_plan(
    steps: Sequence[int], scratch: Path, on_progress: Progress
) -> dict[str, dict[str, float]]:
    """Plan the shards of ever more synthetic inputs, each step in its own process.

    Args:
        steps: Numbers of inputs, ascending, multiples of 500.
        scratch: Empty folder for the tables, 200 bytes an input, and the plan's files, up to 3 kB
            an input.
        on_progress: Called before each step.

    Returns:
        By number of inputs: seconds per input; peak resident memory, MiB, with mapped files; peak
        of the process's own memory, sampled every 20 ms, without them; and the share of the planted
        near duplicates that was found.

    Raises:
        RuntimeError: The process failed, or lost an input.
    """
    tables, have = scratch / "tables", 0
    tables.mkdir()
    kinds = Counter(map(_kind, range(_CYCLE)))
    found: dict[str, dict[str, float]] = {}
    for position, num in enumerate(steps):
        on_progress(position, len(steps), f"plan: {num:,} inputs")
        _write_tables(tables, have, num)
        have = num
        arguments = (tables, num, scratch / "plan")
        module = "pipeline.bench.plan_growth"
        about, own_mib = watch(module, arguments, scratch, f"plan (={num})")
        planted = {kind: n * num // _CYCLE for kind, n in kinds.items()}
        wanted = num, planted["copy"], planted["broken"]
        if (about["inputs"], about["copies"], about["broken"]) != wanted:
            raise RuntimeError(f"plan (={num}) gave {about}.")
        found[str(num)] = {
            "seconds_per_input": about["seconds"] / num,
            "peak_mib": about["peak_mib"],
            "own_mib": own_mib,
            "near_found": about["near"] / planted["alike"],
        }
    on_progress(len(steps), len(steps), "")
    return found


def _kind(number: int) -> str:
    place = number % _CYCLE
    if place % 10 in (8, 9):
        return "broken" if place % 10 == 8 else "copy"
    return "alike" if place == 2 else "own"


def _write_tables(folder: Path, first: int, stop: int) -> None:
    """Write inputs `first` to `stop` - 1 as tables of parts."""
    for start in range(first, stop, _ROWS_PER_TABLE):
        pq.write_table(_table(start), folder / f"{start:012}.parquet", compression="zstd")


def _table(start: int) -> pa.Table:
    numbers = range(start, start + _ROWS_PER_TABLE)
    kinds = [_kind(number) for number in numbers]
    # A copy is of the first of its ten.
    contents = [n - 9 if kind == "copy" else n for n, kind in zip(numbers, kinds, strict=True)]
    broken = [kind == "broken" for kind in kinds]
    columns = {
        "name": [f"crawl/{number // 1000:07}/{number:010}.jpg" for number in numbers],
        "outcome": ["quarantined" if is_broken else "accepted" for is_broken in broken],
        "reason": ["truncated" if is_broken else None for is_broken in broken],
        "content_hash": [xxhash.xxh3_128_digest(str(content).encode()) for content in contents],
        "size": [20_000 + content % 10_000 for content in contents],
        "stored_hash": contents,
        "near_words": [
            None if is_broken else look
            for is_broken, look in zip(broken, _looks(start), strict=True)
        ],
    }
    arrays = [
        pa.array(columns[item.name], item.type)
        if item.name in columns
        else pa.repeat(pa.scalar(_SAME[item.name], item.type), _ROWS_PER_TABLE)
        for item in SCHEMA
    ]
    return pa.table(arrays, schema=SCHEMA)


def _looks(start: int) -> list[bytes]:
    """Make the thumbnails of a table."""
    rng = np.random.default_rng(start)
    pixels = photo_like(rng, _ROWS_PER_TABLE)
    for place in range(_ROWS_PER_TABLE):
        kind = _kind(place)
        if kind == "copy":
            pixels[place] = pixels[place - 9]
        elif kind == "alike":
            pixels[place] = pixels[place - 1] + rng.integers(-_NOISE, _NOISE + 1, (SIDE, SIDE))
    return [look.tobytes() for look in np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)]


def photo_like(rng: np.random.Generator, num: int) -> NDArray[np.float64]:
    """Draw unclipped thumbnails like photographs in spectrum: luma, float64 (num, SIDE, SIDE)."""
    waves = rng.standard_normal((num, SIDE, SIDE)) * _SPECTRUM
    pixels: NDArray[np.float64] = _WAVES @ waves @ _WAVES.T + _MEAN
    return pixels


def _spectrum() -> Any:
    """Return amplitudes that fall as one over the frequency; the mean has none."""
    across = np.arange(SIDE)
    loudness = _LOUDNESS / np.maximum(np.hypot(across[:, None], across), 1)
    loudness[0, 0] = 0
    return loudness


_WAVES, _SPECTRUM = cosines(SIDE), _spectrum()


def main() -> None:
    """Plan; arguments: folder of tables, number of inputs, folder of the plan."""
    tables, num, folder = sorted(Path(sys.argv[1]).iterdir()), int(sys.argv[2]), Path(sys.argv[3])
    start = time.perf_counter()
    ledger = make_plan(tables, num, folder, ShardConfig()).ledger
    about = {
        "seconds": time.perf_counter() - start,
        "inputs": ledger.inputs,
        "copies": ledger.duplicate - ledger.near_duplicate,
        "near": ledger.near_duplicate,
        "broken": ledger.num_quarantined,
        "peak_mib": memory_mib(os.getpid(), "VmHWM"),
    }
    sys.stdout.write(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()
