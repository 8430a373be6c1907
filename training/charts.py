"""Geometry of the report's charts; the template draws them as SVG in the colours of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 10.0, 8.0, 22.0
_MAX_POINTS = 400
_ROW_HEIGHT = 26.0
_ROW_LEFT = 92.0


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
class Series:
    """Values of one quantity against the step."""

    name: str
    """An id, unique on the page."""
    title: str
    steps: Sequence[int]
    values: Sequence[float]
    """As long as steps; what is not finite leaves a gap."""
    from_zero: bool
    """Whether the axis starts at 0."""
    unit: str = ""
    """Behind every number; "%" for values that are percent."""
    rule: float | None = None
    """Value of a line to compare with."""
    rule_label: str = "chance"


@dataclass(frozen=True, slots=True)
class LineChart:
    """One curve."""

    name: str
    title: str
    box: Box
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    path: str
    """The `d` of an SVG path."""
    rule: Tick | None
    summary: str
    """The curve in words."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One trunk's score in a row."""

    trunk: str
    x: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class DotRow:
    """One layer: the dots of all trunks on a line."""

    label: str
    y: float
    dots: tuple[Dot, ...]
    low: float
    """Smallest x of the dots."""
    high: float
    """Largest x of the dots."""


@dataclass(frozen=True, slots=True)
class DotChart:
    """Scores per layer and trunk."""

    box: Box
    x_ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]
    chance: float | None
    """x of the chance line, None where the axis does not reach it."""


def line_chart(series: Series, *, width: float, height: float) -> LineChart:
    """Place a curve of at least one record; long ones are averaged to at most 400 points."""
    steps, values = _thin(series.steps, series.values)
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    reach = finite if series.rule is None else [*finite, series.rule]
    low, high = (0.0 if series.from_zero else min(reach)), max(reach)
    y_values = ticks(low, high, at_most=int(height / 36))
    x_values = [v for v in ticks(0, steps[-1], at_most=int(width / 72)) if v <= steps[-1]]
    box = Box(width, height, _LEFT, _TOP, width - _RIGHT, height - _BOTTOM)

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * value / max(steps[-1], 1)

    bottom, top = min(low, y_values[0]), max(high, y_values[-1])

    def y(value: float) -> float:
        return box.bottom - (box.bottom - box.top) * (value - bottom) / (top - bottom)

    rule = series.rule
    return LineChart(
        name=series.name,
        title=series.title,
        box=box,
        x_ticks=tuple(Tick(x(v), number(v)) for v in x_values),
        y_ticks=tuple(Tick(y(v), number(v) + series.unit) for v in y_values),
        path=_path(
            [
                (x(s), y(v) if math.isfinite(v) else math.nan)
                for s, v in zip(steps, values, strict=True)
            ]
        ),
        rule=None if rule is None else Tick(y(rule), series.rule_label),
        summary=_describe(series),
    )


def dot_chart(
    scores: dict[str, dict[str, float]], best: dict[str, float], chance: float
) -> DotChart:
    """Place the scores of all trunks on all layers.

    Args:
        scores: Trunk to layer to percent; the same layers for each trunk.
        best: Trunk to its highest score.
        chance: Percent.
    """
    layers = list(next(iter(scores.values())))
    found = [score for by_layer in scores.values() for score in by_layer.values()]
    x_values = ticks(min(found), max(found), at_most=6)
    height = _TOP + _ROW_HEIGHT * len(layers) + _BOTTOM
    box = Box(460, height, _ROW_LEFT, _TOP, 460 - 16, height - _BOTTOM)
    low, high = min(*found, x_values[0]), max(*found, x_values[-1])

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * (value - low) / (high - low)

    rows = []
    for position, layer in enumerate(layers):
        dots = tuple(
            Dot(trunk, x(by_layer[layer]), by_layer[layer] == best[trunk])
            for trunk, by_layer in scores.items()
        )
        places = [dot.x for dot in dots]
        y = box.top + _ROW_HEIGHT * (position + 0.5)
        rows.append(DotRow(layer, y, dots, min(places), max(places)))
    marks = tuple(Tick(x(v), number(v) + "\N{NO-BREAK SPACE}%") for v in x_values)
    return DotChart(box, marks, tuple(rows), x(chance) if low <= chance <= high else None)


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


def _path(points: Sequence[tuple[float, float]]) -> str:
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


def _describe(series: Series) -> str:
    finite = [(v, s) for v, s in zip(series.values, series.steps, strict=True) if math.isfinite(v)]
    if not finite:
        return f"{series.title}: no finite value in {len(series.values)} records."
    (first, at_first), (last, at_last) = finite[0], finite[-1]
    (low, at_low), (high, at_high) = min(finite), max(finite)
    lost = len(series.values) - len(finite)
    gaps = f" {lost} records are not finite." if lost else ""

    def show(value: float) -> str:
        return number(float(f"{value:.3g}")) + series.unit

    return (
        f"From {show(first)} at step {at_first:,} to {show(last)} at step {at_last:,}; "
        f"lowest {show(low)} (step {at_low:,}), highest {show(high)} (step {at_high:,}).{gaps}"
    )
