"""The bench of the loader: contests, further measures, one result."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import RenderableType

from pipeline.bench.contest import (
    Effort,
    Progress,
    Row,
    Show,
    Standing,
    busy_note,
    contest_table,
    last_line,
    measure_table,
    named,
    ratio,
)
from pipeline.bench.inputs import FILES, SHARDS, prepare
from pipeline.bench.loader_measures import (
    contest,
    cuda,
    first_batch,
    growth,
    images_of,
    python_overhead,
    restore,
)
from pipeline.bench.loader_peers import CONTENDERS, quick_names
from pipeline.bench.machine import describe_machine
from pipeline.bench.work import LoaderWork, View
from pipeline.config import ConfigError

Part = Literal["tiles", "whole", "python_overhead", "growth", "first_batch", "restore", "cuda"]
PARTS: tuple[Part, ...] = get_args(Part)

FULL = Effort(rounds=5, seconds=5.0, warm=0.7, choose=1.5)
QUICK_EFFORT = Effort(rounds=3, seconds=1.5, warm=0.4, choose=0.3)
FULL_IMAGES, QUICK_IMAGES = 2_000, 500
_TITLES: dict[View, str] = {
    "tiles": "Nine jittered 64 px tiles of a random crop resized to 255 px",
    "whole": "The central square resized to 224 px",
}
_RATIOS = {"x peer": "ratio_to_fastest_peer", "x decode": "ratio_to_decode_only"}
PHRASES = (
    {
        "ratio_to_fastest_peer": "{ratio_to_fastest_peer:.2f}x the fastest peer ({fastest_peer})",
        "ratio_to_decode_only": "{ratio_to_decode_only:.2f} of decode only",
    },
    {"images_per_s": "{images_per_s:.0f} images/s"},
)
"""What the last line says of the headline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What is measured, and on which images."""

    data: Path
    """Folder of images or of shards."""
    quick: bool
    only: Part | None
    cores: int
    device: Literal["cpu", "cuda"]
    effort: Effort
    most: int
    """Most images taken from `data`."""
    batch: int = 64

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is measured, in order."""
        if self.only:
            return (self.only,)
        if self.quick:
            return ("tiles",)
        return PARTS if self.device == "cuda" else PARTS[:-1]


def bench_loader(options: BenchOptions, on_progress: Progress, show: Show) -> dict[str, Any]:
    """Measure what the options ask for.

    Args:
        options: What is measured.
        on_progress: Called with steps done, steps in all, and what is being done.
        show: Called with each table as it is ready, and with the last line.

    Returns:
        The headline, a section for each part, and what the numbers depend on.

    Raises:
        ConfigError: `data` is not there, or holds fewer images than a batch.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as name:
        scratch = Path(name)
        on_progress(0, 1, "making shards")
        manifest = prepare(
            options.data, scratch, most=options.most, least=options.batch, cores=options.cores
        )
        for part in options.parts:
            found[part] = _measure(part, options, scratch, on_progress)
            show(_table(part, found[part], options))
    top = headline(found["tiles"]["rows"]) if "tiles" in found else {}
    if top:
        note = busy_note(top["cores_used"], options.cores)
        if note:
            show(note)
        show(last_line(top, *PHRASES))
    about = {"images": manifest.num_samples, "batch": options.batch, "cores": options.cores}
    return {**top, **about, **describe_machine(), **found}


def _measure(
    part: Part, options: BenchOptions, scratch: Path, on_progress: Progress
) -> dict[str, Any]:
    cores, effort = options.cores, options.effort
    view: View = "whole" if part == "whole" else "tiles"
    work = LoaderWork(
        shards=scratch / SHARDS, scratch=scratch, view=view, batch=options.batch, cores=cores
    )
    on_progress(0, 1, part)
    match part:
        case "tiles" | "whole":
            takers = [one for one in CONTENDERS if not options.quick or one.name in quick_names()]
            standings = contest([(one, work) for one in takers], effort, on_progress)
            return {"title": _TITLES[view], "rows": rows_of(standings)}
        case "python_overhead":
            return python_overhead(work.shards, batch=options.batch, batches=100)
        case "growth":
            images = images_of(scratch / FILES)
            return growth(images, scratch, cores=cores, effort=effort, on_progress=on_progress)
        case "first_batch":
            images = images_of(scratch / FILES)
            return dict(first_batch(images, scratch / "million", threads=cores, times=3))
        case "restore":
            return restore()
        case "cuda":
            return cuda(work)


def rows_of(standings: Sequence[Standing]) -> list[Row]:
    """Describe every contender; rates are images per second, None where it did not run."""
    rows = []
    for one in standings:
        speeds = one.speeds()
        ran = bool(speeds["rounds"])
        row = {key: getattr(one, key) for key in ("name", "title", "role", "setting", "failure")}
        row["cores_used"] = speeds["images_per_s"] / speeds["images_per_cpu_s"] if ran else None
        rows.append(row | speeds)
    fastest, limit = _fastest_peer(rows), named(rows, "decode_only")
    for row in rows:
        row["ratio_to_fastest_peer"] = ratio(row, fastest)
        row["ratio_to_decode_only"] = ratio(row, limit)
    return rows


def _fastest_peer(rows: Sequence[Row]) -> Row | None:
    """Return the peer with the best median, None where none ran."""
    ran = [row for row in rows if row["role"] == "peer" and row["images_per_s"] is not None]
    return max(ran, key=lambda row: row["images_per_s"], default=None)


def headline(rows: Sequence[Row]) -> Row:
    """Return what the JSON has at its top."""
    ours, fastest = named(rows, "tessera") or {}, _fastest_peer(rows)
    keys = ("images_per_s", "images_per_cpu_s", "cores_used")
    ratios = ("ratio_to_fastest_peer", "ratio_to_decode_only")
    return {
        **{key: ours.get(key) for key in keys},
        "fastest_peer": fastest["title"] if fastest else None,
        **{key: ours.get(key) for key in ratios},
    }


def _table(part: Part, measured: dict[str, Any], options: BenchOptions) -> RenderableType:
    if "rows" in measured:
        effort = options.effort
        title = (
            f"{measured['title']}\nbatches of {options.batch} on {options.cores} cores; medians of "
            f"{effort.rounds} rounds of {effort.seconds:g} s, all contenders in turn"
        )
        rows = sorted(measured["rows"], key=lambda row: -(row["images_per_s"] or 0))
        return contest_table(title, rows, _RATIOS)
    return measure_table(part, measured)


def make_options(
    data: Path, *, quick: bool, only: str | None, cores: int | None, device: str
) -> BenchOptions:
    """Check the options of the command line.

    Raises:
        ConfigError: A name is not known, or the machine has fewer cores.
    """
    part = next((one for one in PARTS if one == only), None)
    if only is not None and part is None:
        raise ConfigError(f"only (={only}) names no measure; give one of {', '.join(PARTS)}.")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device (={device}) is not known; give cpu or cuda.")
    there = len(os.sched_getaffinity(0))
    if cores is not None and cores > there:
        raise ConfigError(f"cores (={cores}) exceeds the {there} of this machine; lower it.")
    return BenchOptions(
        data=data,
        quick=quick,
        only=part,
        cores=cores or there,
        device="cuda" if device == "cuda" else "cpu",
        effort=QUICK_EFFORT if quick else FULL,
        most=QUICK_IMAGES if quick else FULL_IMAGES,
    )
