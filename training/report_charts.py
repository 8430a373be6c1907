"""Geometry of the report's charts of scores: over layers or shots, and of all jobs at a glance."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from training.charts import Box, Curve, LineChart, Mark, Tick, number, path, ticks, vertical

_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 8.0, 24.0
_ROW, _APART, _ROW_LEFT, _WIDTH = 18.0, 10.0, 104.0, 480.0
COLORS = 5
"""A style is a number; its remainder names colour and dashes, and another one the marker."""
RANDOM, SUPERVISED, PRETRAINED = 0, 1, 2
_PER_CENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class Reach:
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
    steps: Steps, scores: Mapping[str, Mapping[str, Reach]], styles: Mapping[str, int]
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
    box = Box(440, 230, _LEFT, _TOP, 440 - _RIGHT, 230 - _BOTTOM)
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


def dot_chart(scores: Mapping[str, Mapping[str, Reach]], styles: Mapping[str, int]) -> DotChart:
    """Place the scores of all jobs on one axis, each label on a line of its own.

    Args:
        scores: Job to label to score; a job may lack labels.
        styles: By label.
    """
    found = [reach for by_label in scores.values() for reach in by_label.values()]
    low, high = min(reach.low for reach in found), max(reach.high for reach in found)
    x_values = ticks(min(low, 0.0), high, at_most=7)
    left, right = _ROW_LEFT, _WIDTH - _RIGHT
    low, high = min(low, x_values[0]), max(high, x_values[-1])

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    rows, top = [], _TOP
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
    return DotChart(Box(_WIDTH, top + _BOTTOM, left, _TOP, right, top), marks, tuple(rows))


def _highest(label: str, by_place: Mapping[str, Reach]) -> str:
    place, reach = max(by_place.items(), key=lambda item: item[1].mean)
    return f"{label} {reach.mean:.1f}{_PER_CENT} at {place}"
