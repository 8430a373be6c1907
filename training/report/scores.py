"""The transfer section of the report: the scores of all runs in tables and charts."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from training.report.charts import (
    COLORS,
    PRETRAINED,
    RANDOM,
    SUPERVISED,
    DotChart,
    LineChart,
    ScoreRange,
    Steps,
    dot_chart,
    own_styles,
    score_chart,
)
from training.report.results import JOBS, Results

_PROTOCOL = ("config", "seeds", "images", "random_trunk", "view_px", "precision")
"""Keys of a job's record that must agree for its scores to be compared."""
_POOLINGS = {"gap": "averages over the map", "map": "a grid of places"}


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score: a row of the table."""

    run: str
    job: str
    label: str
    """The job, with its k if it has several."""
    trunk: str
    layer: str
    metric: str
    reach: ScoreRange
    train_images: int
    test_images: int
    seconds: float
    overlap: Mapping[str, int]
    """Number of images that two sets share, by pair of sets."""
    shots: int | None
    """Training images per class; None for all of them."""

    @property
    def shared(self) -> int:
        """Shared images, summed over all pairs of sets."""
        return sum(self.overlap.values())

    @property
    def value(self) -> tuple[Any, ...]:
        """Everything that distinguishes two scores except run and time."""
        return (self.label, self.trunk, self.layer, self.metric, self.reach, self.test_images)


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """The best layer of every trunk at one job."""

    label: str
    best: Mapping[str, ScoreRow]
    """By series; a series that has not done the job is missing."""
    gain: float | None
    """Pretrained minus random, in points; None if one of them is missing."""

    @property
    def highest(self) -> float:
        """Highest score of all series."""
        return max(entry.reach.mean for entry in self.best.values())


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a job did, in words, and its settings."""

    job: str
    runs: Sequence[str]
    text: str
    metrics: Sequence[str]
    config: str
    """YAML."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The transfer section."""

    entries: Sequence[ScoreRow]
    series: Mapping[str, int]
    """Label to style."""
    rows: Sequence[SummaryRow]
    overview: DotChart
    charts: Sequence[LineChart]
    protocols: Sequence[Protocol]
    differences: Sequence[str]
    """What differs between runs that stand side by side."""
    notes: Sequence[str]
    standard_error: float
    """Upper bound for an accuracy on so many test images, in points."""

    @property
    def several(self) -> bool:
        """Whether the scores come from several runs."""
        return len({entry.run for entry in self.entries}) > 1


def scores_of(runs: Mapping[str, Results], styles: Mapping[str, int]) -> Scores | None:
    """Collect the scores of all runs; None if there are none.

    Args:
        runs: Results by the run's name on the page.
        styles: Style by the same names, used for pretrained trunks if there are several runs.
    """
    entries = [row for name, run in runs.items() for row in _entries(run, name)]
    if not entries:
        return None
    series = _by_series(entries, several=len(runs) > 1)
    series_styles = _styles(series, styles)
    rows = _summary_rows(series)
    chance = {name: r.transfer["chance"] for name, r in runs.items() if r.transfer}
    # The variance of an accuracy p over n images is p (1 - p) / n, largest at one half.
    error = 50 / max(1, min(entry.test_images for entry in entries)) ** 0.5
    return Scores(
        entries=entries,
        series=series_styles,
        rows=rows,
        overview=dot_chart(_overview(rows), series_styles),
        charts=[score_chart(*chart, series_styles) for chart in _charts(series, chance)],
        protocols=_protocols(runs),
        differences=differences(runs) if len(runs) > 1 else [],
        notes=list(dict.fromkeys(_notes(runs.values()))),
        standard_error=error,
    )


def _entries(results: Results, run: str) -> Iterator[ScoreRow]:
    """Yield the scores of a run, in the order of JOBS."""
    for one in (one for record in results.jobs.values() for one in record["results"]):
        details = one["details"]
        k = details.get("shots", details.get("neighbours") if one["job"] == "knn" else None)
        yield ScoreRow(
            run=run,
            job=one["job"],
            label=one["job"] if k is None else f"{one['job']}, k = {k}",
            trunk=one["trunk"],
            layer=one["layer"],
            metric=one["metric"],
            reach=ScoreRange(one["score"], *one["range"]),
            train_images=one["train_images"],
            test_images=one["test_images"],
            seconds=one["seconds"],
            overlap=one["overlap"],
            shots=details.get("shots"),
        )


def _by_series(entries: Sequence[ScoreRow], *, several: bool) -> dict[str, list[ScoreRow]]:
    """Group entries by the line of a chart: a trunk, or a run's trunk if there are several runs.

    A trunk that scored the same in all runs, as random ones of one seed do, appears once. The
    pretrained trunk of a run has the run's name.
    """
    trunks: dict[str, dict[str, list[ScoreRow]]] = {}
    for entry in entries:
        trunks.setdefault(entry.trunk, {}).setdefault(entry.run, []).append(entry)
    series: dict[str, list[ScoreRow]] = {}
    for trunk, by_run in trunks.items():
        groups: dict[frozenset[Any], list[str]] = {}
        for run, ours in by_run.items():
            # A pretrained trunk belongs to its run, whatever it scores.
            own = run if trunk == "pretrained" else ""
            groups.setdefault(frozenset((own, *(e.value for e in ours))), []).append(run)
        for runs in groups.values():
            alone = trunk if not several or len(groups) == 1 else f"{', '.join(runs)}: {trunk}"
            name = runs[0] if several and trunk == "pretrained" else alone
            series[name] = by_run[runs[0]]
    return series


def _styles(series: Mapping[str, Sequence[ScoreRow]], runs: Mapping[str, int]) -> dict[str, int]:
    """Give every series a style; random, supervised and other trunks have their own colours."""
    fixed = runs if len(runs) > 1 else {"pretrained": PRETRAINED}
    free = {
        "random": (n for n in itertools.count() if n % COLORS == RANDOM),
        "supervised": (n for n in itertools.count() if n % COLORS == SUPERVISED),
        "": (n for n in own_styles() if n not in fixed.values()),
    }
    styles = {}
    for label, ours in series.items():
        trunk = ours[0].trunk
        is_run = label in fixed and trunk == "pretrained"
        styles[label] = fixed[label] if is_run else next(free.get(trunk, free[""]))
    return styles


def _summary_rows(series: Mapping[str, Sequence[ScoreRow]]) -> list[SummaryRow]:
    labels = dict.fromkeys(entry.label for ours in series.values() for entry in ours)
    rows = []
    for label in labels:
        best = {
            name: max(there, key=lambda entry: entry.reach.mean)
            for name, ours in series.items()
            if (there := [entry for entry in ours if entry.label == label])
        }
        both = "pretrained" in best and "random" in best
        gain = best["pretrained"].reach.mean - best["random"].reach.mean if both else None
        rows.append(SummaryRow(label, best, gain))
    return rows


def _overview(rows: Sequence[SummaryRow]) -> dict[str, dict[str, ScoreRange]]:
    """Keep one row per job: that of the largest k."""
    last = {next(iter(row.best.values())).job: row for row in rows}
    return {row.label: {k: entry.reach for k, entry in row.best.items()} for row in last.values()}


def _charts(
    series: Mapping[str, Sequence[ScoreRow]], chance: Mapping[str, float]
) -> list[tuple[Steps, dict[str, dict[str, ScoreRange]]]]:
    """Chart each job over its layers, or over the images per class where these are few."""
    found: dict[str, dict[str, dict[str, ScoreRange]]] = {}
    chances: dict[str, set[float | None]] = {}
    for name, ours in series.items():
        for entry in ours:
            title, place = _place(entry)
            found.setdefault(title, {}).setdefault(name, {})[place] = entry.reach
            known = chance.get(entry.run) if entry.job in ("svm", "low_shot") else None
            chances.setdefault(title, set()).add(known)
    charts = []
    for number, (title, by_name) in enumerate(found.items()):
        places = list(dict.fromkeys(place for by_place in by_name.values() for place in by_place))
        (first, *others) = chances[title]
        if len(places) > 1:
            steps = Steps(f"scores-{number}", title, places, None if others else first)
            charts.append((steps, by_name))
    return charts


def _place(entry: ScoreRow) -> tuple[str, str]:
    """Return the title of an entry's chart, and its position on the axis there."""
    if entry.shots is not None:
        return f"{entry.job}: {entry.layer}, by images of each class", str(entry.shots)
    layer, _, pooling = entry.layer.partition(".")
    kind = _POOLINGS.get(pooling, pooling)
    return f"{entry.label}: {kind}" if kind else entry.label, layer


def _protocols(runs: Mapping[str, Results]) -> list[Protocol]:
    found: dict[tuple[str, str, str], tuple[list[str], dict[str, None]]] = {}
    for name, results in runs.items():
        for job, record in results.jobs.items():
            settings = {**record["config"], "seeds": record["seeds"]}
            config = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            names, metrics = found.setdefault((job, record["protocol"], config), ([], {}))
            names.append(name)
            metrics.update(dict.fromkeys(one["metric"] for one in record["results"]))
    return [
        Protocol(job, names, text, list(metrics), config)
        for (job, text, config), (names, metrics) in found.items()
    ]


def _notes(runs: Iterable[Results]) -> Iterator[str]:
    """Yield what was excluded or odd about the images."""
    return (note for run in runs for record in run.jobs.values() for note in record["notes"])


def differences(runs: Mapping[str, Results]) -> list[str]:
    """List what the scores of runs depend on and what differs between these runs.

    Args:
        runs: Results by the run's name on the page.
    """
    found = []
    if len({_images(results) for results in runs.values()}) > 1:
        found.append("the images of the pretraining differ")
    if len({results.config.trunk.model_dump_json() for results in runs.values()}) > 1:
        found.append("the architectures differ")
    missing: dict[str, list[str]] = {}
    for job in JOBS:
        records = [results.jobs[job] for results in runs.values() if job in results.jobs]
        found += _differing(job, records)
        if records and len(records) < len(runs):
            without = ", ".join(name for name, results in runs.items() if job not in results.jobs)
            missing.setdefault(without, []).append(job)
    found += [f"no {', '.join(jobs)} of {without}" for without, jobs in missing.items()]
    return found


def _differing(job: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the keys in which the records of a job differ, those of its config one by one."""
    flat = [
        {**{key: one.get(key) for key in _PROTOCOL if key != "config"}, **one["config"]}
        for one in records
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    return [f"{job} differs in {', '.join(differ)}"] if differ else []


def _images(results: Results) -> str:
    """Identify the pretraining's images; by their location if they cannot be read."""
    manifest = results.manifest
    return str(results.shard_folder) if isinstance(manifest, str) else manifest.fingerprint
