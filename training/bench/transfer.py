"""The bench of a transfer: extraction of features, SVMs, linear probes, one result."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from pipeline.bench.contest import Progress
from pipeline.bench.machine import describe_machine
from pipeline.bench.table import Row, load_note, measure_table, speed_cells
from pipeline.config import ConfigError
from training.bench.classifiers import measure_probes, measure_svms
from training.bench.extraction import TITLES, Turns, bound, hold
from training.bench.peers import write_files
from training.bench.work import ExtractionWork, TrunkName
from training.transfer.config import TransferConfig
from training.transfer.images.data import prepare

_TURNS_OF_ALL = 2
"""Steps beside the rounds: features of either side."""
_IN_WORDS = {"loader": "the loader", "forward": "the forward pass"}
Show = Callable[[RenderableType], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured."""

    turns: Turns
    """Of the extraction."""
    svm_rounds: int
    probe_rounds: int
    epochs: int
    """Of a probe."""
    train_per_class: int
    test_per_class: int
    num_classes: int | None
    """The first ones; None takes all."""
    batch: int
    view_px: int = TransferConfig().view_px


FULL = Effort(
    turns=Turns(rounds=5, warm=0.7, seconds=5.0),
    svm_rounds=1,
    probe_rounds=3,
    epochs=1,
    train_per_class=20,
    test_per_class=10,
    num_classes=None,
    batch=64,
)
QUICK = Effort(
    turns=Turns(rounds=3, warm=0.2, seconds=1.0),
    svm_rounds=3,
    probe_rounds=3,
    epochs=1,
    train_per_class=8,
    test_per_class=4,
    num_classes=10,
    batch=16,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferBench:
    """What is measured, on what."""

    data: Path
    """Labelled images: a tree with a folder for each class, or shards."""
    trunk: TrunkName
    effort: Effort
    cores: int


def make_options(data: Path, *, quick: bool, trunk: str) -> TransferBench:
    """Check what a person typed.

    Raises:
        ConfigError: The trunk is not known.
    """
    named = next((name for name in get_args(TrunkName) if name == trunk), None)
    if named is None:
        known = " or ".join(get_args(TrunkName))
        raise ConfigError(f"trunk (={trunk}) is not known here; give {known}.")
    cores = len(os.sched_getaffinity(0))
    return TransferBench(data=data, trunk=named, effort=QUICK if quick else FULL, cores=cores)


def bench_transfer(options: TransferBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    """Measure the extraction, the SVMs and the probes.

    Args:
        options: What.
        on_progress: Called with steps done, steps in all, and what is being done.
        show: Called with each table as it is ready, and with the last line.

    Returns:
        The headline, a section for each measure, and what the numbers depend on.

    Raises:
        ConfigError: `data` is not there, has no labels, or too few images or classes.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as name:
        found = _measure(options, Path(name), on_progress, show)
    note = load_note(load, options.cores)
    if note:
        show(note)
    show(last_line(found))
    return {**found, "load": load, **describe_machine()}


def _measure(
    options: TransferBench, scratch: Path, on_progress: Progress, show: Show
) -> dict[str, Any]:
    effort = options.effort
    turns = 4 * effort.turns.rounds + 3 * effort.svm_rounds + 2 * effort.probe_rounds
    total = turns + _TURNS_OF_ALL
    done = 0

    def step(what: str) -> None:
        nonlocal done
        on_progress(done, total, what)
        done += 1

    def within(what: str) -> None:
        on_progress(done - 1, total, what)

    def packed(what: str, files: int, of: int) -> None:
        on_progress(0, total, f"{what}: {files} of {of}")

    work = _open(options, scratch, packed)
    setting, trunk = work.setting(), work.named_trunk()
    write_files(setting.task, scratch / "files")
    on_progress(0, total, "starting")
    theirs = scratch / "torchvision"
    rows = hold(work, effort.turns, theirs, step)
    show(extraction_table(work, effort.turns, rows))
    svms = measure_svms(setting, trunk, theirs, effort.svm_rounds, step, within)
    show(svm_table(svms))
    rounds = effort.probe_rounds
    probes = measure_probes(setting, trunk, epochs=effort.epochs, rounds=rounds, step=step)
    show(measure_table("linear probes", {k: v for k, v in probes.items() if k != "rounds"}))
    on_progress(total, total, "")
    task = setting.task
    return {
        **bound(rows),
        **{key: value for key, value in svms.items() if key != "layers"},
        **{key: value for key, value in probes.items() if key.startswith("probe_")},
        "trunk": work.trunk,
        "images": {"train": len(task.train.sample_ids), "test": len(task.test.sample_ids)},
        "classes": len(task.classes),
        "batch": work.batch,
        "view_px": work.view_px,
        "cores": work.cores,
        "extraction": {"rows": rows},
        "svm": {"layers": svms["layers"], "rounds": effort.svm_rounds},
        "probe": {"epochs": probes["epochs"], "rounds": probes["rounds"]},
    }


def _open(
    options: TransferBench, scratch: Path, on_progress: Callable[[str, int, int], None]
) -> ExtractionWork:
    """Pack the images where they are no shards."""
    effort = options.effort
    sets = (TransferConfig().train_set, TransferConfig().test_set)
    places = prepare(options.data, scratch, sets=sets, on_progress=on_progress).places
    return ExtractionWork(
        shards=places["all"] if "all" in places else str(Path(places["train"]).parent),
        folder=str(scratch),
        trunk=options.trunk,
        view_px=effort.view_px,
        batch=effort.batch,
        cores=options.cores,
        train_per_class=effort.train_per_class,
        test_per_class=effort.test_per_class,
        num_classes=effort.num_classes,
    )


def extraction_table(work: ExtractionWork, turns: Turns, rows: list[Row]) -> Table:
    """Show the extraction beside what holds it up."""
    title = (
        f"Features of all stages of {work.trunk} at {work.view_px} px\nbatches of {work.batch} on "
        f"{work.cores} cores; medians of {turns.rounds} rounds of {turns.seconds:g} s, all in turn"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("contender")
    for name in ("images/s", "min..max", "per CPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["title"],
            *speed_cells(row),
            style="bold" if row["title"] == TITLES["tessera"] else "",
        )
    return table


def svm_table(svms: dict[str, Any]) -> Table:
    """Show the scores of each layer, and the time of all."""
    title = "SVMs of all layers: percent of the test images, mean over classes"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("layer")
    names = ("svm_score", "svm_on_theirs", "sklearn_score")
    for name in ("ours", "ours on torchvision's", "scikit-learn on torchvision's"):
        table.add_column(name, justify="right")
    for row in svms["layers"]:
        scores = (row[name] for name in names)
        cells = ("-" if score is None else f"{score:.1f}" for score in scores)
        table.add_row(row["layer"], *cells)
    layers = svms["layers"][: svms["sklearn_layers"]]
    part = "" if len(layers) == len(svms["layers"]) else f" of the first {len(layers)}"
    table.add_row(f"mean{part}", *(f"{svms[name]:.1f}" for name in names), style="bold")
    of_all = f"{svms['svm_seconds']:.1f} s"
    if part:
        table.add_row("seconds", of_all, style="bold")
    seconds = [
        f"{sum(row[name] for row in layers):.1f} s"
        for name in ("svm_on_theirs_seconds", "sklearn_seconds")
    ]
    table.add_row(f"seconds{part}", "" if part else of_all, *seconds, style="bold")
    return table


def last_line(found: dict[str, Any]) -> str:
    """Say it in one line."""
    return (
        f"extraction runs at {found['ratio_to_bound']:.2f} of {_IN_WORDS[found['bound_by']]}, "
        f"which bounds it, {found['ratio_to_shared_cores']:.2f} of what both can on the same "
        f"cores, {found['ratio_to_torchvision']:.2f}x the torchvision loop; SVMs "
        f"{found['svm_ratio']:.1f}x as fast as scikit-learn; the probe of all layers costs "
        f"{found['probe_ratio']:.2f}x that of the last"
    )
