"""The bench of the loader: contests, further measures, one result."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import RenderableType

from pipeline.bench.contenders import CONTENDERS, quick_names
from pipeline.bench.contest import Effort, Entrant, Progress, hold
from pipeline.bench.first_batch import first_batch
from pipeline.bench.growth import growth, images_of
from pipeline.bench.machine import describe_machine
from pipeline.bench.overhead import python_overhead, restore
from pipeline.bench.photos import FILES, SHARDS, prepare
from pipeline.bench.table import (
    busy_note,
    contest_table,
    headline,
    last_line,
    measure_table,
    rows_of,
)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What is measured, on what."""

    data: Path
    """Folder of images or of shards."""
    quick: bool
    only: Part | None
    cores: int
    device: Literal["cpu", "cuda"]
    effort: Effort
    most: int
    """Images taken from `data`."""
    batch: int = 64

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is measured, in order."""
        if self.only:
            return (self.only,)
        if self.quick:
            return ("tiles",)
        return PARTS if self.device == "cuda" else PARTS[:-1]


def bench_loader(
    options: BenchOptions, on_progress: Progress, show: Callable[[RenderableType], None]
) -> dict[str, Any]:
    """Measure what the options ask for.

    Args:
        options: What.
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
        note = busy_note(top, options.cores)
        if note:
            show(note)
        show(last_line(top))
    about = {"images": manifest.num_samples, "batch": options.batch, "cores": options.cores}
    return {**top, **about, **describe_machine(), **found}


def _measure(
    part: Part, options: BenchOptions, scratch: Path, on_progress: Progress
) -> dict[str, Any]:
    shards, cores = scratch / SHARDS, options.cores
    on_progress(0, 1, part)
    match part:
        case "tiles" | "whole":
            return _contest(part, options, scratch, on_progress)
        case "python_overhead":
            return python_overhead(shards, batch=options.batch, batches=100)
        case "growth":
            images = images_of(scratch / FILES)
            return growth(
                images, scratch, cores=cores, effort=options.effort, on_progress=on_progress
            )
        case "first_batch":
            images = images_of(scratch / FILES)
            return dict(first_batch(images, scratch / "million", threads=cores, times=3))
        case "restore":
            return restore()
        case "cuda":
            from pipeline.bench.cuda import cuda

            return cuda(
                LoaderWork(shards=shards, scratch=scratch, view="tiles", batch=64, cores=cores)
            )


def _contest(
    view: View, options: BenchOptions, scratch: Path, on_progress: Progress
) -> dict[str, Any]:
    work = LoaderWork(
        shards=scratch / SHARDS,
        scratch=scratch,
        view=view,
        batch=options.batch,
        cores=options.cores,
    )
    takers = [one for one in CONTENDERS if not options.quick or one.name in quick_names()]
    standings = hold([Entrant(one, work) for one in takers], options.effort, on_progress)
    return {"title": _TITLES[view], "rows": rows_of(standings)}


def _table(part: Part, measured: dict[str, Any], options: BenchOptions) -> RenderableType:
    if "rows" in measured:
        effort = options.effort
        title = (
            f"{measured['title']}\nbatches of {options.batch} on {options.cores} cores; medians of "
            f"{effort.rounds} rounds of {effort.seconds:g} s, all contenders in turn"
        )
        return contest_table(title, measured["rows"])
    return measure_table(part, measured)


def make_options(
    data: Path, *, quick: bool, only: str | None, cores: int | None, device: str
) -> BenchOptions:
    """Check what a person typed.

    Raises:
        ConfigError: A name is not known, or there are fewer cores.
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
