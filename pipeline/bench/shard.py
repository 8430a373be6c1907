"""The bench of the shard stage: contests of making shards, growth, one result."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from pipeline.bench.contest import Progress
from pipeline.bench.machine import describe_machine
from pipeline.bench.plan_growth import measure_plan
from pipeline.bench.shard_contest import CONTESTS, Contest, Field
from pipeline.bench.shard_growth import measure_growth
from pipeline.bench.shard_inputs import Numbers, make_inputs
from pipeline.bench.table import Row, load_note, measure_table, speed_cells
from pipeline.config import ConfigError

FULL = Numbers(small=1_000, large=200, png=200)
QUICK = Numbers(small=150, large=24, png=40)
_ROUNDS, _QUICK_ROUNDS = 5, 3
_LEFT_TO_THE_FULL_RUN = ("tessera", "tessera_444", "tessera_shards", "webdataset")
_GROWTH_FROM = 1_000
_GROWTH_TO = 100_000
_RATIOS = {
    "ratio_to_img2dataset": ("reencode", "tessera_near"),
    "ratio_to_img2dataset_small": ("small", "tessera_near"),
    "ratio_to_img2dataset_png": ("png", "tessera_near"),
    "ratio_passthrough_to_decode_only": ("passthrough", "tessera_near"),
    "ratio_two_workers": ("scaling", "two_workers"),
    "limit_two_workers": ("scaling_limit", "two_decoders"),
}
Show = Callable[[RenderableType], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBench:
    """What is measured, on what."""

    data: Path
    """Folder of images or of shards."""
    numbers: Numbers
    rounds: int
    everyone: bool
    """Whether variants of ours and the weaker peer take part, too."""
    growth: tuple[int, ...]
    """Numbers of inputs, ascending; empty where growth is not measured."""
    plan: tuple[int, ...]
    """Likewise, of made-up inputs that are planned alone."""
    cores: int

    @property
    def contests(self) -> tuple[Contest, ...]:
        """What is held, in order."""
        left_out = () if self.everyone else _LEFT_TO_THE_FULL_RUN
        return tuple(
            replace(one, runners=tuple(name for name in one.runners if name not in left_out))
            for one in CONTESTS
        )


def make_options(data: Path, *, quick: bool, growth: int | None, plan: int | None) -> ShardBench:
    """Check what a person typed.

    Args:
        data: Folder of images or of shards.
        quick: Few images, few rounds, the strongest peers, and no growth unless it is asked for.
        growth: Most inputs of that measure; None for the default.
        plan: Most made-up inputs of that measure; None for no such measure.

    Raises:
        ConfigError: `growth` or `plan` is too small.
    """
    return ShardBench(
        data=data,
        numbers=QUICK if quick else FULL,
        rounds=_QUICK_ROUNDS if quick else _ROUNDS,
        everyone=not quick,
        growth=_steps("growth", (None if quick else _GROWTH_TO) if growth is None else growth),
        plan=_steps("plan", plan),
        cores=len(os.sched_getaffinity(0)),
    )


def _steps(name: str, most: int | None) -> tuple[int, ...]:
    """Return tenfold steps up to `most`."""
    if most is None:
        return ()
    if most < _GROWTH_FROM:
        raise ConfigError(f"{name} (={most}) must be at least {_GROWTH_FROM}; raise it.")
    steps = [_GROWTH_FROM]
    while steps[-1] * 10 <= most:
        steps.append(steps[-1] * 10)
    return tuple(steps)


def bench_shard(options: ShardBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    """Measure what the options ask for.

    Args:
        options: What.
        on_progress: Called with steps done, steps in all, and what is being done.
        show: Called with each table as it is ready, and with the last line.

    Returns:
        The headline, a section for each contest, growth, the plan, and what the numbers depend on.

    Raises:
        ConfigError: `data` is not there, or holds too few usable images.
    """
    load = os.getloadavg()[0]
    contests = _hold_all(options, on_progress, show)
    found: dict[str, Any] = {**headline(contests), "load": load, "cores": options.cores}
    found |= {**describe_machine(), **contests}
    if options.growth:
        with tempfile.TemporaryDirectory(prefix="tessera-bench-") as scratch:
            growth = measure_growth(options.growth, Path(scratch), options.cores, on_progress)
        found["growth"] = growth
        show(measure_table("growth", growth))
    if options.plan:
        with tempfile.TemporaryDirectory(prefix="tessera-bench-") as scratch:
            plan = measure_plan(options.plan, Path(scratch), on_progress)
        found["plan"] = plan
        show(measure_table("plan", plan))
    note = load_note(load, options.cores)
    if note:
        show(note)
    show(last_line(found))
    return found


def _hold_all(options: ShardBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    contests = options.contests
    total = sum((options.rounds * one.times + 1) * len(one.runners) for one in contests)
    found: dict[str, Any] = {}
    done = 0

    def step(what: str) -> None:
        nonlocal done
        on_progress(done, total, what)
        done += 1

    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as name, ExitStack() as stack:
        on_progress(0, total, "making images")
        folders = make_inputs(options.data, Path(name), options.numbers)
        on_progress(0, total, "starting")
        field = Field(stack, Path(name), contests, cores=options.cores)
        for contest in contests:
            found[contest.name] = field.hold(contest, folders, options.rounds, step)
            show(_table(contest, found[contest.name]))
    return found


def headline(contests: dict[str, Any]) -> dict[str, Any]:
    """Return what the JSON has at its top; a ratio is None where a side of it did not run.

    They are about the parts of ours with its default settings but for chroma, which is the peers';
    beside the peers' work parts hold hashes for near duplicates, thumbnails and a table of inputs.
    Each stands there twice: by the clock, which other programs disturb, and by the processors'
    time, which sees no waiting; of two workers the latter is 1 where an image costs no more than
    with one.
    """
    found = {"img2dataset": _named(contests["reencode"]["rows"], "img2dataset")["variant"] or None}
    for key, (contest, name) in _RATIOS.items():
        row = _named(contests[contest]["rows"], name)
        found[key], found[f"{key}_per_cpu_s"] = row["ratio"], row["ratio_per_cpu_s"]
    return found


def last_line(found: dict[str, Any]) -> str:
    """Say it in one line."""
    texts = {
        "ratio_to_img2dataset": f"{{}}x {found['img2dataset']} encoding again",
        "ratio_passthrough_to_decode_only": "{} of the strict decode only",
        "ratio_two_workers": "two workers {}x one",
        "limit_two_workers": "two strict decodes {}x one",
    }
    said = [
        text.format(f"{found[key]:.2f} ({found[key + '_per_cpu_s']:.2f} per CPU s)")
        for key, text in texts.items()
        if found[key] is not None
    ]
    return f"ours {', '.join(said)}" if said else "ours did not run; see the tables"


def _named(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row["name"] == name)


def _table(contest: Contest, measured: Row) -> Table:
    counts = f"{measured['files']} files; medians of {measured['rounds']} rounds, all in turn"
    title = f"{contest.title}\n{counts}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("contestant")
    base = _named(measured["rows"], contest.base)["title"]
    for name in ("images/s", "min..max", "per CPU s", "ratio", "ratio per CPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in measured["rows"]:
        title = row["title"] + (f" ({row['variant']})" if row["variant"] else "")
        if row["images_per_s"] is None:
            table.add_row(f"{title}: {escape(row['failure'])}")
            continue
        table.add_row(
            title,
            *speed_cells(row),
            _cell(row["ratio"]),
            _cell(row["ratio_per_cpu_s"]),
            style="bold" if row["name"].startswith(("tessera", "two")) else "",
        )
    table.caption = f"ratios to {base}"
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
