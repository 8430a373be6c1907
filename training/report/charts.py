"""Geometry of the report's charts; the template draws them as SVG in the colours of the page."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 10.0, 8.0, 22.0
_MAX_POINTS = 400
_MARKS = 6  # on a curve that is drawn beside others


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in units of the drawing, and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Box:
    """The drawing and, inside it, the area of the data."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Line:
    """One run's values of a quantity, or one trunk's."""

    label: str
    """What the legend calls it."""
    style: int
    """Names colour, marker and dashes; the same wherever the label is the same."""
    steps: Sequence[int]
    values: Sequence[float]
    """As long as steps; what is not finite leaves a gap."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one quantity against the step, of one run or several."""

    name: str
    """An id, unique on the page."""
    title: str
    lines: Sequence[Line]
    """At least one, each of at least one record."""
    from_zero: bool
    """Whether the axis starts at 0."""
    unit: str = ""
    """Behind every number; "%" for values that are percent."""
    rule: float | None = None
    """Value of a line to compare with."""
    rule_label: str = "chance"


@dataclass(frozen=True, slots=True)
class Mark:
    """A marker on a curve, and how far its value ranges."""

    x: float
    y: float
    low: float
    """y of the least value."""
    high: float
    """y of the greatest value."""


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
    """Curves on the same axes."""

    name: str
    title: str
    box: Box
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    rule: Tick | None
    summary: str
    """The curves in words."""


def line_chart(series: Series, *, width: float, height: float) -> LineChart:
    """Place curves; long ones are averaged to at most 400 points, several get markers."""
    thin = [_thin(line.steps, line.values) for line in series.lines]
    finite = [v for _, values in thin for v in values if math.isfinite(v)] or [0.0]
    reach = finite if series.rule is None else [*finite, series.rule]
    low, high = (0.0 if series.from_zero else min(reach)), max(reach)
    y_values = ticks(low, high, at_most=int(height / 36))
    last = max(steps[-1] for steps, _ in thin)
    x_values = [v for v in ticks(0, last, at_most=int(width / 72)) if v <= last]
    box = Box(width, height, _LEFT, _TOP, width - _RIGHT, height - _BOTTOM)

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * value / max(last, 1)

    y = vertical(box, min(low, y_values[0]), max(high, y_values[-1]))
    curves = []
    for line, (steps, values) in zip(series.lines, thin, strict=True):
        points = [(x(s), y(v)) for s, v in zip(steps, values, strict=True)]
        marks = _spread(points, line.style) if len(thin) > 1 else ()
        curves.append(Curve(line.label, line.style, path(points), marks))
    return LineChart(
        name=series.name,
        title=series.title,
        box=box,
        x_ticks=tuple(Tick(x(v), number(v)) for v in x_values),
        y_ticks=tuple(Tick(y(v), number(v) + series.unit) for v in y_values),
        curves=tuple(curves),
        rule=None if series.rule is None else Tick(y(series.rule), series.rule_label),
        summary=" ".join(_describe(line, series) for line in series.lines),
    )


def vertical(box: Box, bottom: float, top: float) -> Callable[[float], float]:
    """Return the function that places a value between the two ends; NaN for what has no place."""

    def y(value: float) -> float:
        if not math.isfinite(value):
            return math.nan
        return box.bottom - (box.bottom - box.top) * (value - bottom) / (top - bottom)

    return y


def ticks(low: float, high: float, *, at_most: int) -> list[float]:
    """Return round numbers that cover low..high, evenly apart, at most so many (at least 3).

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
    """Write a number shortly, thousands apart.

    >>> number(12000.0), number(0.0005), number(2.5)
    ('12,000', '0.0005', '2.5')
    """
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 1000 else 6
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Average runs of records; a run stands at its last step."""
    run = -(-len(steps) // _MAX_POINTS)
    starts = range(0, len(steps), run)
    thin_steps = [steps[min(start + run, len(steps)) - 1] for start in starts]
    chunks = [values[start : start + run] for start in starts]
    return thin_steps, [math.fsum(chunk) / len(chunk) for chunk in chunks]


def path(points: Sequence[tuple[float, float]]) -> str:
    """Join the points; one whose y is NaN breaks the line, one alone becomes a dot."""
    parts: list[str] = []
    pen_is_down = False
    for x, y in points:
        if math.isnan(y):
            pen_is_down = False
            continue
        parts.append(f"L{x:.1f} {y:.1f}" if pen_is_down else f"M{x:.1f} {y:.1f}h0")
        pen_is_down = True
    return "".join(parts)


def _spread(points: Sequence[tuple[float, float]], style: int) -> tuple[Mark, ...]:
    """Put a few markers on a curve; curves of other styles get theirs at other places."""
    apart = max(1, len(points) // _MARKS)
    shift = style * apart // _MARKS % apart
    return tuple(Mark(x, y, y, y) for x, y in points[shift::apart] if not math.isnan(y))


def _describe(line: Line, series: Series) -> str:
    """Say where a curve begins, ends and reaches to; shortly, where it is one of several."""
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


_SCORES_LEFT, _SCORES_RIGHT, _SCORES_TOP, _SCORES_BOTTOM = 50.0, 14.0, 8.0, 24.0
_ROW, _APART, _ROW_LEFT, _WIDTH = 18.0, 10.0, 104.0, 480.0
COLORS = 5
"""A style is a number; its remainder names colour and dashes, and another one the marker."""
RANDOM, SUPERVISED, PRETRAINED = 0, 1, 2
_PER_CENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """A mean score, and the least and greatest behind it, percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dot:
    """One score in a row."""

    label: str
    """Whose score."""
    style: int
    x: float
    y: float
    low: float
    """x of the least."""
    high: float
    """x of the greatest."""


@dataclass(frozen=True, slots=True)
class DotRow:
    """One job: a line for each score."""

    label: str
    y: float
    """Middle of the row."""
    top: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class DotChart:
    """The best scores of all jobs."""

    box: Box
    x_ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """What a chart of scores has below its axis, and how it is named."""

    name: str
    """An id, unique on the page."""
    title: str
    places: Sequence[str]
    """Layers, or numbers of images, in their order, evenly spaced."""
    chance: float | None
    """Percent."""


def own_styles() -> Iterator[int]:
    """Count the styles that have neither the colour of random trunks nor of supervised ones."""
    return (n for n in itertools.count() if n % COLORS not in (RANDOM, SUPERVISED))


def score_chart(
    steps: Steps, scores: Mapping[str, Mapping[str, ScoreRange]], styles: Mapping[str, int]
) -> LineChart:
    """Draw a line with markers for each label.

    Args:
        steps: The horizontal axis.
        scores: Label to place to score; a place that is lacking breaks the line.
        styles: By label.
    """
    found = [reach for by_place in scores.values() for reach in by_place.values()]
    chance = [] if steps.chance is None else [steps.chance]
    low = min(*(reach.low for reach in found), *chance, math.inf)
    high = max(*(reach.high for reach in found), *chance, -math.inf)
    y_values = ticks(low, high, at_most=6)
    box = Box(440, 230, _SCORES_LEFT, _SCORES_TOP, 440 - _SCORES_RIGHT, 230 - _SCORES_BOTTOM)
    y = vertical(box, min(low, y_values[0]), max(high, y_values[-1]))
    apart = (box.right - box.left) / len(steps.places)
    x = {name: box.left + apart * (n + 0.5) for n, name in enumerate(steps.places)}
    curves = []
    for label, by_place in scores.items():
        means = [by_place[name].mean if name in by_place else math.nan for name in steps.places]
        points = [(x[name], y(mean)) for name, mean in zip(steps.places, means, strict=True)]
        marks = [Mark(x[k], y(r.mean), y(r.low), y(r.high)) for k, r in by_place.items()]
        curves.append(Curve(label, styles[label], path(points), tuple(marks)))
    return LineChart(
        name=steps.name,
        title=steps.title,
        box=box,
        x_ticks=tuple(Tick(at, name) for name, at in x.items()),
        y_ticks=tuple(Tick(y(v), number(v) + _PER_CENT) for v in y_values),
        curves=tuple(curves),
        rule=None if steps.chance is None else Tick(y(steps.chance), "chance"),
        summary=f"Highest: {'; '.join(_highest(*item) for item in scores.items())}.",
    )


def dot_chart(
    scores: Mapping[str, Mapping[str, ScoreRange]], styles: Mapping[str, int]
) -> DotChart:
    """Place the scores of all jobs on one axis, each label on a line of its own.

    Args:
        scores: Job to label to score; a job may lack labels.
        styles: By label.
    """
    found = [reach for by_label in scores.values() for reach in by_label.values()]
    low, high = min(reach.low for reach in found), max(reach.high for reach in found)
    x_values = ticks(min(low, 0.0), high, at_most=7)
    left, right = _ROW_LEFT, _WIDTH - _SCORES_RIGHT
    low, high = min(low, x_values[0]), max(high, x_values[-1])

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    rows, top = [], _SCORES_TOP
    for job, by_label in scores.items():
        height = _ROW + _APART * (len(by_label) - 1)
        first = top + _ROW / 2
        dots = [
            Dot(label, styles[label], x(r.mean), first + _APART * n, x(r.low), x(r.high))
            for n, (label, r) in enumerate(by_label.items())
        ]
        rows.append(DotRow(job, top + height / 2, top, tuple(dots)))
        top += height + _APART / 2
    marks = tuple(Tick(x(v), number(v) + _PER_CENT) for v in x_values)
    return DotChart(
        Box(_WIDTH, top + _SCORES_BOTTOM, left, _SCORES_TOP, right, top), marks, tuple(rows)
    )


def _highest(label: str, by_place: Mapping[str, ScoreRange]) -> str:
    place, reach = max(by_place.items(), key=lambda item: item[1].mean)
    return f"{label} {reach.mean:.1f}{_PER_CENT} at {place}"
