"""The bench of a transfer: extraction of features, SVMs, linear probes, one result."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.bench.contest import (
    Effort,
    Progress,
    Show,
    Steps,
    contest_table,
    load_note,
    measure_table,
)
from pipeline.bench.machine import describe_machine
from pipeline.config import ConfigError
from training.bench.classifiers import measure_probes, measure_svms
from training.bench.extraction import ExtractionWork, TrunkName, bound, hold, write_files
from training.transfer.config import TransferConfig
from training.transfer.images.data import prepare

_OTHER_TURNS = 2
"""Steps besides the rounds: features of ours and of the torchvision loop."""
_IN_WORDS = {"loader": "the loader", "forward": "the forward pass"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much is measured."""

    extraction: Effort
    svm_rounds: int
    probe_rounds: int
    epochs: int
    """Epochs of a probe."""
    train_per_class: int
    test_per_class: int
    num_classes: int | None
    """The first ones; None takes all."""
    batch: int
    view_px: int = TransferConfig().view_px


FULL = Budget(
    extraction=Effort(rounds=5, warm=0.7, seconds=5.0),
    svm_rounds=1,
    probe_rounds=3,
    epochs=1,
    train_per_class=20,
    test_per_class=10,
    num_classes=None,
    batch=64,
)
QUICK = Budget(
    extraction=Effort(rounds=3, warm=0.2, seconds=1.0),
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
    """What is measured, and on which images."""

    data: Path
    """Labelled images: a tree with a folder per class, or shards."""
    trunk: TrunkName
    budget: Budget
    cores: int


def make_options(data: Path, *, quick: bool, trunk: str) -> TransferBench:
    """Check the options of the command line.

    Raises:
        ConfigError: The trunk is not known.
    """
    named = next((name for name in get_args(TrunkName) if name == trunk), None)
    if named is None:
        known = " or ".join(get_args(TrunkName))
        raise ConfigError(f"trunk (={trunk}) is not known here; give {known}.")
    cores = len(os.sched_getaffinity(0))
    return TransferBench(data=data, trunk=named, budget=QUICK if quick else FULL, cores=cores)


def bench_transfer(options: TransferBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    """Measure the extraction, the SVMs and the probes.

    Args:
        options: What is measured.
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
    budget, contest = options.budget, options.budget.extraction
    turns = 4 * contest.rounds + 3 * budget.svm_rounds + 2 * budget.probe_rounds
    step = Steps(on_progress, turns + _OTHER_TURNS)
    work = _open(options, scratch, lambda what, files, of: step.within(f"{what}: {files} of {of}"))
    setting, trunk = work.setting(), work.named_trunk()
    write_files(setting.task, scratch / "files")
    step.within("starting")
    theirs = scratch / "torchvision"
    rows = hold(work, contest, theirs, step)
    title = (
        f"Features of all stages of {work.trunk} at {work.view_px} px\nbatches of {work.batch} on "
        f"{work.cores} cores; medians of {contest.rounds} rounds of {contest.seconds:g} s, all in "
        "turn"
    )
    show(contest_table(title, rows, {}))
    svms = measure_svms(setting, trunk, theirs, budget.svm_rounds, step)
    show(svm_table(svms))
    rounds = budget.probe_rounds
    probes = measure_probes(setting, trunk, epochs=budget.epochs, rounds=rounds, step=step)
    show(measure_table("linear probes", {k: v for k, v in probes.items() if k != "rounds"}))
    step.finish()
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
        "svm": {"layers": svms["layers"], "rounds": budget.svm_rounds},
        "probe": {"epochs": probes["epochs"], "rounds": probes["rounds"]},
    }


def _open(
    options: TransferBench, scratch: Path, on_progress: Callable[[str, int, int], None]
) -> ExtractionWork:
    """Make shards of the images, unless they are shards already."""
    budget = options.budget
    sets = (TransferConfig().train_set, TransferConfig().test_set)
    places = prepare(options.data, scratch, sets=sets, on_progress=on_progress).places
    return ExtractionWork(
        shards=places["all"] if "all" in places else str(Path(places["train"]).parent),
        folder=str(scratch),
        trunk=options.trunk,
        view_px=budget.view_px,
        batch=budget.batch,
        cores=options.cores,
        train_per_class=budget.train_per_class,
        test_per_class=budget.test_per_class,
        num_classes=budget.num_classes,
    )


def svm_table(svms: dict[str, Any]) -> Table:
    """Show the scores by layer, and the time of all."""
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
    """Say the headline in one line."""
    return (
        f"extraction runs at {found['ratio_to_bound']:.2f} of {_IN_WORDS[found['bound_by']]}, "
        f"which bounds it, {found['ratio_to_shared_cores']:.2f} of what both can on the same "
        f"cores, {found['ratio_to_torchvision']:.2f}x the torchvision loop; SVMs "
        f"{found['svm_ratio']:.1f}x as fast as scikit-learn; the probe of all layers costs "
        f"{found['probe_ratio']:.2f}x that of the last"
    )
