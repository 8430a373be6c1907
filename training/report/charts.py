"""Geometry of the report's charts; the templates draw them as SVG in the colours of the page."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.pretext.multitask import PretextConfig, tasks_of, weights_of
from training.metrics import MetricsRecord

PERCENT = "\N{NO-BREAK SPACE}%"
COLORS = 5
"""A style is a number: modulo this it selects colour and dashes, modulo 6 the marker."""
RANDOM, SUPERVISED, PRETRAINED = 0, 1, 2
"""Styles of the trunks of a single run."""

_LEFT, _TOP = 50.0, 8.0
_MAX_POINTS = 400
_MARKERS = 6  # On a curve that shares its chart.
_ROW, _APART, _ROW_LEFT, _DOTS_WIDTH = 18.0, 10.0, 104.0, 480.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run has recorded so far."""

    label: str
    """The run's name in the legend."""
    style: int
    records: Sequence[MetricsRecord]
    pretext: PretextConfig | None
    """Gives the chance level."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values of one quantity, of one run."""

    label: str
    style: int
    """Selects colour, marker and dashes; the same wherever the label is the same."""
    steps: Sequence[int]
    values: Sequence[float]
    """One per step; a value that is not finite leaves a gap."""


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity against the training step, for one run or several."""

    name: str
    """An id, unique on the page."""
    title: str
    lines: Sequence[Line]
    """At least one, each of at least one record."""
    from_zero: bool
    """Whether the axis starts at 0."""
    unit: str = ""
    """Appended to every number."""
    rule: float | None = None
    """Value of a blind guess, drawn as a line to compare with."""


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """A mean score with the lowest and highest of its repetitions, in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Steps:
    """The horizontal axis of a score chart, and the chart's name."""

    name: str
    """An id, unique on the page."""
    title: str
    places: Sequence[str]
    """Layers or numbers of images, evenly spaced in this order."""
    chance: float | None
    """Percent."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A position on an axis, in drawing units, and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Box:
    """Size of the drawing, and the data area inside it."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A marker on a curve, and the range of its value."""

    x: float
    y: float
    low: float
    """y of the lowest value."""
    high: float
    """y of the highest value."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    label: str
    style: int
    path: str
    """The `d` of an SVG path."""
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves on common axes."""

    name: str
    title: str
    box: Box
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    rule: Tick | None
    summary: str
    """The curves in words."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One score in a row."""

    label: str
    style: int
    x: float
    y: float
    low: float
    """x of the lowest value."""
    high: float
    """x of the highest value."""


@dataclass(frozen=True, slots=True)
class DotRow:
    """One job, with a dot for each trunk."""

    label: str
    y: float
    """Middle of the row."""
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class DotChart:
    """The best scores of all jobs on one axis."""

    box: Box
    x_ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]


def own_styles() -> Iterator[int]:
    """Yield the styles whose colour is neither that of random nor of supervised trunks."""
    return (n for n in itertools.count() if n % COLORS not in (RANDOM, SUPERVISED))


def curves(runs: Sequence[Recorded]) -> list[LineChart]:
    """Chart loss and accuracy large, everything else small; a chart per task if there are several.

    Runs without records are skipped. The chance level is drawn where all runs of a chart share it.
    """
    runs = [run for run in runs if run.records]
    if not runs:
        return []
    tasks = list(dict.fromkeys(name for run in runs for name in several_tasks(run.records)))
    mean = ", the mean over the tasks" if tasks else ""
    loss = _series("loss", "Loss", runs, lambda r: r.loss, _blind_loss)
    accuracy = _series(
        "accuracy", f"Pretext accuracy{mean}", runs, lambda r: 100 * r.accuracy, _chance, PERCENT
    )
    waiting = _series(
        *("starvation", "Waiting for the loader", runs),
        lambda r: 100 * r.starvation,
        unit=PERCENT,
    )
    minor = [
        *(_task_series(name, runs) for name in tasks),
        _series("lr", "Learning rate", runs, lambda r: r.lr),
        _series("speed", "Images/s", runs, lambda r: r.images_per_s),
        waiting,
    ]
    return [
        *(line_chart(series, width=440, height=220) for series in (loss, accuracy)),
        *(line_chart(series, width=320, height=170) for series in minor),
    ]


def several_tasks(records: Sequence[MetricsRecord]) -> tuple[str, ...]:
    """Return the names of the tasks, or none where there is only one."""
    names = tuple(records[-1].accuracy_of) if records else ()
    return names if len(names) > 1 else ()


def _task_series(name: str, runs: Sequence[Recorded]) -> Series:
    return _series(
        f"accuracy-{name}",
        f"Accuracy: {name}",
        [run for run in runs if name in several_tasks(run.records)],
        lambda record: 100 * record.accuracy_of[name],
        lambda run: _task_chances(run.pretext).get(name),
        PERCENT,
    )


def _series(
    name: str,
    title: str,
    runs: Sequence[Recorded],
    value: Callable[[MetricsRecord], float],
    rule: Callable[[Recorded], float | None] | None = None,
    unit: str = "",
) -> Series:
    rules = {rule(run) for run in runs} if rule else {None}
    return Series(
        name=name,
        title=title,
        lines=[
            Line(
                run.label, run.style, [r.step for r in run.records], [value(r) for r in run.records]
            )
            for run in runs
        ],
        from_zero=name != "loss",
        unit=unit,
        rule=rules.pop() if len(rules) == 1 else None,
    )


def _chance(run: Recorded) -> float | None:
    return 100 * run.pretext.chance if run.pretext else None


def _task_chances(pretext: PretextConfig | None) -> dict[str, float]:
    return {task.name: 100 * task.chance for task in tasks_of(pretext)} if pretext else {}


def _blind_loss(run: Recorded) -> float | None:
    """Return the loss of a blind guess; for several tasks, their weighted sum."""
    if run.pretext is None:
        return None
    pairs = zip(tasks_of(run.pretext), weights_of(run.pretext), strict=True)
    return sum(-weight * math.log(task.chance) for task, weight in pairs)


def line_chart(series: Series, *, width: float, height: float) -> LineChart:
    """Lay out curves; long ones are averaged to at most 400 points, several get markers."""
    thin = [_thin(line.steps, line.values) for line in series.lines]
    finite = [v for _, values in thin for v in values if math.isfinite(v)] or [0.0]
    reach = finite if series.rule is None else [*finite, series.rule]
    low, high = (0.0 if series.from_zero else min(reach)), max(reach)
    y_values = ticks(low, high, at_most=int(height / 36))
    last = max(steps[-1] for steps, _ in thin)
    x_values = [v for v in ticks(0, last, at_most=int(width / 72)) if v <= last]
    box = Box(width, height, _LEFT, _TOP, width - 10, height - 22)

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * value / max(last, 1)

    y = _vertical(box, min(low, y_values[0]), max(high, y_values[-1]))
    drawn = []
    for line, (steps, values) in zip(series.lines, thin, strict=True):
        points = [(x(s), y(v)) for s, v in zip(steps, values, strict=True)]
        marks = _spread(points, line.style) if len(thin) > 1 else ()
        drawn.append(Curve(line.label, line.style, _path(points), marks))
    return LineChart(
        name=series.name,
        title=series.title,
        box=box,
        x_ticks=tuple(Tick(x(v), number(v)) for v in x_values),
        y_ticks=tuple(Tick(y(v), number(v) + series.unit) for v in y_values),
        curves=tuple(drawn),
        rule=None if series.rule is None else Tick(y(series.rule), "chance"),
        summary=" ".join(_describe(line, series) for line in series.lines),
    )


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Average groups of consecutive records; a group stands at its last step."""
    size = -(-len(steps) // _MAX_POINTS)
    starts = range(0, len(steps), size)
    thin_steps = [steps[min(start + size, len(steps)) - 1] for start in starts]
    chunks = [values[start : start + size] for start in starts]
    return thin_steps, [math.fsum(chunk) / len(chunk) for chunk in chunks]


def _spread(points: Sequence[tuple[float, float]], style: int) -> tuple[Mark, ...]:
    """Put a few markers on a curve, shifted by style so that they do not coincide."""
    apart = max(1, len(points) // _MARKERS)
    shift = style * apart // _MARKERS % apart
    return tuple(Mark(x, y, y, y) for x, y in points[shift::apart] if not math.isnan(y))


def _describe(line: Line, series: Series) -> str:
    """Put a curve into words: its ends and its range; briefly if it is one of several."""
    name = line.label if len(series.lines) > 1 else series.title
    finite = [(v, s) for v, s in zip(line.values, line.steps, strict=True) if math.isfinite(v)]
    if not finite:
        return f"{name}: no finite value in {len(line.values)} records."
    (first, at_first), (last, at_last) = finite[0], finite[-1]
    (low, at_low), (high, at_high) = min(finite), max(finite)
    lost = len(line.values) - len(finite)
    gaps = f" {lost} records are not finite." if lost else ""

    def show(value: float) -> str:
        return number(float(f"{value:.3g}")) + series.unit

    if len(series.lines) > 1:
        return f"{name}: {show(first)} to {show(last)}, {show(low)} to {show(high)} in all.{gaps}"
    return (
        f"From {show(first)} at step {at_first:,} to {show(last)} at step {at_last:,}; "
        f"lowest {show(low)} (step {at_low:,}), highest {show(high)} (step {at_high:,}).{gaps}"
    )


def score_chart(
    steps: Steps, scores: Mapping[str, Mapping[str, ScoreRange]], styles: Mapping[str, int]
) -> LineChart:
    """Draw a line with markers for each label.

    Args:
        steps: The horizontal axis.
        scores: Label to place to score; a missing place breaks the line.
        styles: By label.
    """
    found = [reach for by_place in scores.values() for reach in by_place.values()]
    chance = [] if steps.chance is None else [steps.chance]
    low = min(*(reach.low for reach in found), *chance, math.inf)
    high = max(*(reach.high for reach in found), *chance, -math.inf)
    y_values = ticks(low, high, at_most=6)
    box = Box(440, 230, _LEFT, _TOP, 440 - 14, 230 - 24)
    y = _vertical(box, min(low, y_values[0]), max(high, y_values[-1]))
    apart = (box.right - box.left) / len(steps.places)
    x = {name: box.left + apart * (n + 0.5) for n, name in enumerate(steps.places)}
    drawn = []
    for label, by_place in scores.items():
        means = [by_place[name].mean if name in by_place else math.nan for name in steps.places]
        points = [(x[name], y(mean)) for name, mean in zip(steps.places, means, strict=True)]
        marks = [Mark(x[k], y(r.mean), y(r.low), y(r.high)) for k, r in by_place.items()]
        drawn.append(Curve(label, styles[label], _path(points), tuple(marks)))
    return LineChart(
        name=steps.name,
        title=steps.title,
        box=box,
        x_ticks=tuple(Tick(at, name) for name, at in x.items()),
        y_ticks=tuple(Tick(y(v), number(v) + PERCENT) for v in y_values),
        curves=tuple(drawn),
        rule=None if steps.chance is None else Tick(y(steps.chance), "chance"),
        summary=f"Highest: {'; '.join(_highest(*item) for item in scores.items())}.",
    )


def _highest(label: str, by_place: Mapping[str, ScoreRange]) -> str:
    place, reach = max(by_place.items(), key=lambda item: item[1].mean)
    return f"{label} {reach.mean:.1f}{PERCENT} at {place}"


def dot_chart(
    scores: Mapping[str, Mapping[str, ScoreRange]], styles: Mapping[str, int]
) -> DotChart:
    """Place the scores of all jobs on one axis, one row per job and one line per label in it.

    Args:
        scores: Job to label to score; a job may lack labels.
        styles: By label.
    """
    found = [reach for by_label in scores.values() for reach in by_label.values()]
    low, high = min(reach.low for reach in found), max(reach.high for reach in found)
    x_values = ticks(min(low, 0.0), high, at_most=7)
    left, right = _ROW_LEFT, _DOTS_WIDTH - 14
    low, high = min(low, x_values[0]), max(high, x_values[-1])

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    rows, top = [], _TOP
    for job, by_label in scores.items():
        height = _ROW + _APART * (len(by_label) - 1)
        dots = [
            Dot(label, styles[label], x(r.mean), top + _ROW / 2 + _APART * n, x(r.low), x(r.high))
            for n, (label, r) in enumerate(by_label.items())
        ]
        rows.append(DotRow(job, top + height / 2, tuple(dots)))
        top += height + _APART / 2
    marks = tuple(Tick(x(v), number(v) + PERCENT) for v in x_values)
    return DotChart(Box(_DOTS_WIDTH, top + 24, left, _TOP, right, top), marks, tuple(rows))


def ticks(low: float, high: float, *, at_most: int) -> list[float]:
    """Return evenly spaced round numbers that cover low..high, at most `at_most` (>= 3) of them.

    >>> ticks(0, 73, at_most=5)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / at_most))
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)]
    step = next(s for s in steps if math.ceil(high / s) - math.floor(low / s) < at_most)
    first = math.floor(low / step)
    last = max(first + 1, math.ceil(high / step))
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def number(value: float) -> str:
    """Format a number briefly, with thousands separators.

    >>> number(12000.0), number(0.0005), number(2.5)
    ('12,000', '0.0005', '2.5')
    """
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 1000 else 6
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _vertical(box: Box, bottom: float, top: float) -> Callable[[float], float]:
    """Return the function from a value to its y; NaN for a value that is not finite."""

    def y(value: float) -> float:
        if not math.isfinite(value):
            return math.nan
        return box.bottom - (box.bottom - box.top) * (value - bottom) / (top - bottom)

    return y


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Join points; a NaN breaks the line, a point on its own becomes a dot."""
    parts: list[str] = []
    pen_is_down = False
    for x, y in points:
        if math.isnan(y):
            pen_is_down = False
            continue
        parts.append(f"L{x:.1f} {y:.1f}" if pen_is_down else f"M{x:.1f} {y:.1f}h0")
        pen_is_down = True
    return "".join(parts)
