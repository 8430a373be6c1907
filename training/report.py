"""A run as one HTML page that stands alone: what went in, what was learned, what it is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch

from pipeline.config import ConfigError
from pipeline.crawl.plan import LeftOut
from pipeline.data import open_store
from pipeline.shards.manifest import Manifest, write_atomic
from training.charts import DotChart, LineChart, dot_chart
from training.curves import curves, several_tasks
from training.figures import Filters, Picture, contact_sheet, filters
from training.metrics import Record
from training.models.pretext_model import largest_view
from training.models.trunks import build_trunk
from training.pretrain import TRUNK_FILE
from training.puzzles import TaskPuzzles, puzzles
from training.results import (
    Results,
    commands,
    config_files,
    or_reason,
    read_left_out,
    read_results,
)
from training.run import pretraining_of
from training.transfer.features import load_trunk

REPORT_FILE = "report.html"

_SAMPLES = 24
_PUZZLES = 4
_LEFT_OUT = 20
_TABLE_ROWS = 12
_PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of the transfer table."""

    layer: str
    dimension: int
    scores: Mapping[str, float]
    """Of every trunk, percent."""
    gains: Mapping[str, float]
    """Of every trunk but the first, over the first, in points."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """The transfer section."""

    raw: Mapping[str, Any]
    """transfer.json."""
    rows: Sequence[LayerRow]
    best: Mapping[str, float]
    """Highest score of every trunk, the random one first."""
    chart: DotChart
    standard_error: float
    """Upper bound for an accuracy on so many test images, in points."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the template shows; a text in place of a part says why it is not there."""

    results: Results
    summary: Sequence[str]
    sheet: Sequence[Picture] | str
    left_out: Sequence[LeftOut] | str
    puzzles: Sequence[TaskPuzzles] | str
    curves: Sequence[LineChart]
    tasks: Sequence[str]
    """Those whose accuracies are known beside their mean, where there are several."""
    records: Sequence[Record]
    """A few of the run's records, evenly spaced, the last one among them."""
    transfer: Transfer | str
    filters: Filters | str
    commands: Sequence[str]
    files: Mapping[str, str]
    """Name of a configuration file to its YAML."""


def write_report(run: Path, on_progress: Callable[[str], None]) -> Path:
    """Write `report.html` into a run's folder; what the run lacks becomes a sentence.

    Args:
        run: The `out` folder of a run, finished or not.
        on_progress: Gets the name of each part before it is made.

    Raises:
        ConfigError: The folder holds no run, or a file of it is damaged or of another version.
    """
    on_progress("reading the run")
    results = read_results(run)
    config = results.config
    on_progress("sample images")
    store = or_reason(lambda: open_store(config.data.first_manifest, config.data.cache))
    sheet = store if isinstance(store, str) else or_reason(lambda: contact_sheet(store, _SAMPLES))
    on_progress("puzzles")
    shown = store if isinstance(store, str) else or_reason(lambda: _puzzles(results))
    on_progress("curves and tables")
    transfer = _transfer(results)
    page = Page(
        results=results,
        summary=_summary(results, transfer),
        sheet=sheet,
        left_out=or_reason(lambda: read_left_out(results.shard_folder, _LEFT_OUT)),
        puzzles=shown,
        curves=curves(results.records, results.config.pretext, _PERCENT),
        tasks=several_tasks(results.records),
        records=_spaced(results.records, _TABLE_ROWS),
        transfer=transfer,
        filters=or_reason(lambda: _filters(results)),
        commands=commands(results),
        files=config_files(results),
    )
    path = run / REPORT_FILE
    # A name may hold half of a surrogate pair, which UTF-8 has no bytes for.
    write_atomic(path, _render(page).encode("utf-8", "xmlcharrefreplace"))
    return path


def _summary(results: Results, transfer: Transfer | str) -> list[str]:
    parts = []
    if isinstance(results.manifest, Manifest):
        ledger = results.manifest.ledger
        parts.append(f"{ledger.accepted:,} of {ledger.inputs:,} images")
    if results.pretrain and results.config.pretext:
        spent, rate = _duration(results.pretrain.seconds), results.pretrain.images_per_s
        parts.append(f"{spent} of {results.config.pretext.name} at {rate:,.0f} images/s")
    if isinstance(transfer, Transfer):
        (first, low), *others = transfer.best.items()
        scores = [f"{score:.1f}{_PERCENT}" for _, score in others]
        parts.append(f"{', '.join(scores)} ({first} {low:.1f}{_PERCENT})")
    return parts


def _puzzles(results: Results) -> list[TaskPuzzles]:
    return puzzles(pretraining_of(results.config), _PUZZLES)


def _spaced(records: Sequence[Record], num: int) -> list[Record]:
    """Pick at most `num` records, evenly spaced, the first and the last among them."""
    if len(records) <= num:
        return list(records)
    return [records[round(i * (len(records) - 1) / (num - 1))] for i in range(num)]


def _transfer(results: Results) -> Transfer | str:
    raw = results.transfer
    if raw is None:
        if results.skipped:
            return f"The transfer was skipped: {results.skipped}"
        return "The transfer has not run: there is no transfer.json in this folder."
    layers = raw["layers"]
    scores = {trunk: {k: v["score"] for k, v in by.items()} for trunk, by in layers.items()}
    first, *others = scores
    rows = [
        LayerRow(
            layer,
            layers[first][layer]["dimension"],
            {trunk: scores[trunk][layer] for trunk in scores},
            {trunk: scores[trunk][layer] - scores[first][layer] for trunk in others},
        )
        for layer in scores[first]
    ]
    best = {trunk: max(by.values()) for trunk, by in scores.items()}
    chart = dot_chart(scores, best, raw["chance"])
    # The variance of an accuracy p over n images is p (1 - p) / n, largest at one half.
    return Transfer(raw, rows, best, chart, 50 / raw["test_images"] ** 0.5)


def _filters(results: Results) -> Filters:
    path = results.folder / TRUNK_FILE
    if not path.exists():
        raise ConfigError(f"There is no {TRUNK_FILE} yet: the pretraining has not finished.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(results.config.seed)  # The weights that pretraining starts from.
        pretext = results.config.pretext
        assert pretext is not None, "a trunk was trained, so there is what it was asked"
        trunk = build_trunk(results.config.trunk, view_px=largest_view(pretext))
    random = trunk.first_filters.detach().clone()
    load_trunk(trunk, path)
    return filters(random, trunk.first_filters.detach())


def _render(page: Page) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["percent"] = _PERCENT
    environment.filters |= {"count": "{:,}".format, "duration": _duration, "signed": _signed}
    return environment.get_template("report.html").render(page=page)


def _duration(seconds: float) -> str:
    """Write a duration for people.

    >>> _duration(8.04), _duration(150), _duration(7260)
    ('8.0 s', '150 s', '121 min 0 s')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60:,} min {int(seconds) % 60} s"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
