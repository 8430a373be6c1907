"""The transfer of one run or of several side by side, as the report shows it."""

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

_ALIKE = ("config", "seeds", "images", "random_trunk")
"""Keys of a job's record that must not differ where scores are compared."""
_OF_THE_SECTION = ("view_px", "precision")
"""Keys of a transfer's section that every job obeys."""
_INDIFFERENT = frozenset({"manifest", "weights", "batch", "threads"})
"""Keys of an older transfer's section that its scores do not depend on, or that are elsewhere."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score: a row of the table."""

    run: str
    job: str
    label: str
    """The job, and its k where it has several."""
    trunk: str
    layer: str
    metric: str
    reach: ScoreRange
    train_images: int
    test_images: int
    seconds: float | None
    """None where it is not known."""
    overlap: Mapping[str, int] | None
    """Images whose bytes are in both sets; None where nobody looked."""
    shots: int | None
    """Images of each class that were learned from; None where that is all of them."""

    @property
    def shared(self) -> int | None:
        """Images in several sets, all pairs added."""
        return None if self.overlap is None else sum(self.overlap.values())

    @property
    def value(self) -> tuple[Any, ...]:
        """All that tells scores apart, but for the run and the time."""
        return (self.label, self.trunk, self.layer, self.metric, self.reach, self.test_images)


def entries_of(results: Results, run: str) -> list[ScoreRow]:
    """List the scores of a run, in the order of JOBS.

    Args:
        results: Of the run. Where it has no record of the job svm, transfer.json serves.
        run: What the page calls it.
    """
    found = [entry for raw in results.jobs.values() for entry in _of_job(raw, run)]
    if "svm" not in results.jobs and results.transfer:
        return [*_of_summary(results.transfer, run), *found]
    return found


def differences(runs: Mapping[str, Results]) -> list[str]:
    """Say in which things runs side by side differ that their scores depend on.

    Args:
        runs: By what the page calls them.
    """
    found = []
    manifests = {_fingerprint(results) for results in runs.values()}
    if len(manifests) > 1:
        found.append("the images of the pretraining differ")
    trunks = {results.config.trunk.model_dump_json() for results in runs.values()}
    if len(trunks) > 1:
        found.append("the architectures differ")
    lacking: dict[str, list[str]] = {}
    for job in JOBS:
        every = {name: _protocol(results, job) for name, results in runs.items()}
        known = [one for one in every.values() if one]
        found += _differing(job, known)
        if known and len(known) < len(every):
            without = ", ".join(name for name, one in every.items() if not one)
            lacking.setdefault(without, []).append(job)
    found += [f"no {', '.join(jobs)} of {without}" for without, jobs in lacking.items()]
    return found


def _of_job(raw: Mapping[str, Any], run: str) -> Iterator[ScoreRow]:
    for one in raw["results"]:
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


def _of_summary(raw: Mapping[str, Any], run: str) -> Iterator[ScoreRow]:
    for trunk, by_layer in raw["layers"].items():
        for layer, one in by_layer.items():
            score = one["score"]
            yield ScoreRow(
                run=run,
                job="svm",
                label="svm",
                trunk=trunk,
                layer=layer,
                metric=raw["metric"],
                reach=ScoreRange(score, score, score),
                train_images=raw["train_images"],
                test_images=raw["test_images"],
                seconds=None,
                overlap=raw.get("overlap"),
                shots=None,
            )


def _protocol(results: Results, job: str) -> dict[str, Any] | None:
    """Return what the scores of a job depend on beside the trunk; None where it has not run."""
    raw, summary = results.jobs.get(job), results.transfer
    section = summary["config"] if summary else _section(results)
    if raw:
        shared = {key: raw.get(key, section.get(key)) for key in _OF_THE_SECTION}
        return {**{key: raw.get(key) for key in _ALIKE}, **shared}
    if job != "svm" or summary is None:
        return None
    counts = ("train_images", "test_images", "classes", "fingerprint", "seed")
    config = {key: value for key, value in section.items() if key not in _INDIFFERENT}
    return {"config": config, **{key: summary.get(key) for key in counts}}


def _section(results: Results) -> dict[str, Any]:
    """Return the run's own section: it stands for one that nobody has recorded."""
    chosen = results.config.transfer
    return chosen.model_dump(mode="json") if chosen else {}


def _differing(job: str, known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in which keys the records of a job differ; those of its configuration one by one."""
    if len({frozenset(one) for one in known}) > 1:
        return [f"{job} was recorded by different versions, which do not tell the same of it"]
    flat = [
        {key: value for key, value in one.items() if key != "config"} | one["config"]
        for one in known
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    return [f"{job} differs in {', '.join(differ)}"] if differ else []


def _fingerprint(results: Results) -> str:
    """Name the pretraining's images; where they are, if nobody can read them."""
    manifest = results.manifest
    return str(results.shard_folder) if isinstance(manifest, str) else manifest.fingerprint


_POOLINGS = {"gap": "averages over the map", "map": "a grid of places"}


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """The best layer of every trunk at one job."""

    label: str
    best: Mapping[str, ScoreRow]
    """By series; those that have not done the job are lacking."""
    gain: float | None
    """Pretrained over random, in points; None where one of them is lacking."""

    @property
    def highest(self) -> float:
        """Of all series."""
        return max(entry.reach.mean for entry in self.best.values())


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a job did, in words, and with which settings."""

    job: str
    runs: Sequence[str]
    text: str
    metrics: Sequence[str]
    config: str
    """YAML."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The section of the transfer."""

    entries: Sequence[ScoreRow]
    series: Mapping[str, int]
    """Whose scores there are: label to style."""
    rows: Sequence[SummaryRow]
    overview: DotChart
    charts: Sequence[LineChart]
    protocols: Sequence[Protocol]
    differences: Sequence[str]
    """In what runs side by side are not alike."""
    notes: Sequence[str]
    standard_error: float
    """Upper bound for an accuracy on so many test images, in points."""

    @property
    def several(self) -> bool:
        """Whether the scores are of several runs."""
        return len({entry.run for entry in self.entries}) > 1


def scores_of(runs: Mapping[str, Results], styles: Mapping[str, int]) -> Scores | None:
    """Gather the scores of all runs; None where there are none.

    Args:
        runs: By what the page calls them.
        styles: Of the runs, by the same names; pretrained trunks of several runs get these.
    """
    entries = [entry for name, results in runs.items() for entry in entries_of(results, name)]
    if not entries:
        return None
    series = _by_series(entries, several=len(runs) > 1)
    found_styles = _styles(series, styles)
    rows = _rows(series)
    chance = {name: r.transfer["chance"] for name, r in runs.items() if r.transfer}
    # The variance of an accuracy p over n images is p (1 - p) / n, largest at one half.
    error = 50 / max(1, min(entry.test_images for entry in entries)) ** 0.5
    return Scores(
        entries=entries,
        series=found_styles,
        rows=rows,
        overview=dot_chart(_glance(rows), found_styles),
        charts=[score_chart(*chart, found_styles) for chart in _charts(series, chance)],
        protocols=_protocols(runs),
        differences=differences(runs) if len(runs) > 1 else [],
        notes=list(_notes(runs)),
        standard_error=error,
    )


def _by_series(entries: Sequence[ScoreRow], *, several: bool) -> dict[str, list[ScoreRow]]:
    """Group entries by what is a line of a chart: a trunk, of several runs each its own.

    A trunk that scored the same in all runs, as random ones of one seed do, is there once. The
    pretrained trunk of a run has the run's name.
    """
    trunks: dict[str, dict[str, list[ScoreRow]]] = {}
    for entry in entries:
        trunks.setdefault(entry.trunk, {}).setdefault(entry.run, []).append(entry)
    series: dict[str, list[ScoreRow]] = {}
    for trunk, by_run in trunks.items():
        groups: dict[frozenset[Any], list[str]] = {}
        for run, ours in by_run.items():
            # A pretrained trunk is its run's own, whatever it scores.
            own = run if trunk == "pretrained" else ""
            groups.setdefault(frozenset((own, *(e.value for e in ours))), []).append(run)
        for runs in groups.values():
            alone = trunk if not several or len(groups) == 1 else f"{', '.join(runs)}: {trunk}"
            name = runs[0] if several and trunk == "pretrained" else alone
            series[name] = by_run[runs[0]]
    return series


def _styles(series: Mapping[str, Sequence[ScoreRow]], runs: Mapping[str, int]) -> dict[str, int]:
    """Give every series a style; random, supervised and the others have colours of their own."""
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


def _rows(series: Mapping[str, Sequence[ScoreRow]]) -> list[SummaryRow]:
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


def _glance(rows: Sequence[SummaryRow]) -> dict[str, dict[str, ScoreRange]]:
    """Keep one row of each job, that of the largest k."""
    last = {next(iter(row.best.values())).job: row for row in rows}
    return {row.label: {k: entry.reach for k, entry in row.best.items()} for row in last.values()}


def _charts(
    series: Mapping[str, Sequence[ScoreRow]], chance: Mapping[str, float]
) -> list[tuple[Steps, dict[str, dict[str, ScoreRange]]]]:
    """Choose the charts: of each job over its layers, and over k where few images are learned."""
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
    """Return the chart that an entry stands in, and the place on its axis."""
    if entry.shots is not None:
        return f"{entry.job}: {entry.layer}, by images of each class", str(entry.shots)
    layer, _, pooling = entry.layer.partition(".")
    kind = _POOLINGS.get(pooling, pooling)
    return f"{entry.label}: {kind}" if kind else entry.label, layer


def _protocols(runs: Mapping[str, Results]) -> list[Protocol]:
    found: dict[tuple[str, str, str], tuple[list[str], dict[str, None]]] = {}
    for name, results in runs.items():
        for job, raw in results.jobs.items():
            config = yaml.safe_dump(_asked(raw), sort_keys=False, allow_unicode=True)
            names, metrics = found.setdefault((job, raw["protocol"], config), ([], {}))
            names.append(name)
            metrics.update(dict.fromkeys(one["metric"] for one in raw["results"]))
    return [
        Protocol(job, names, text, list(metrics), config)
        for (job, text, config), (names, metrics) in found.items()
    ]


def _asked(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw["config"], "seeds": raw["seeds"]}


def _notes(runs: Mapping[str, Results]) -> Iterable[str]:
    """Yield what was left out or odd about the images, each line once."""
    told: dict[str, None] = {}
    for results in runs.values():
        for raw in results.jobs.values():
            told.update(dict.fromkeys(raw["notes"]))
        if not results.jobs and results.transfer and results.transfer.get("classes_left_out"):
            told[f"{len(results.transfer['classes_left_out'])} classes have too few images"] = None
    return told
