import itertools
import math
from itertools import pairwise

import pytest

from training.report.charts import (
    Line,
    ScoreRange,
    Series,
    Steps,
    dot_chart,
    line_chart,
    number,
    own_styles,
    score_chart,
    ticks,
)


def _line(values, label="a", style=2):
    return Line(label, style, [10 * (n + 1) for n in range(len(values))], values)


def _chart(*lines, **options):
    lines = [line if isinstance(line, Line) else _line(line) for line in lines]
    series = Series("x", "Something", lines, **{"from_zero": False, **options})
    return line_chart(series, width=320, height=180)


def _points(curve):
    points = curve.path.replace("M", "L").replace("h0", "").split("L")[1:]
    return [tuple(map(float, point.split())) for point in points]


@pytest.mark.parametrize("at_most", [3, 4, 6])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (0, 73.2),
        (-3, 8),
        (2.31, 2.34),
        (0, 3e-7),
        (5, 5),  # A flat curve.
        (0, 0),
        (0, 1e30),  # A diverged loss.
    ],
)
def test_ticks_cover_the_range_evenly(low, high, at_most):
    found = ticks(low, high, at_most=at_most)
    assert 2 <= len(found) <= at_most
    assert found[0] <= low
    assert found[-1] >= high
    gaps = [b - a for a, b in pairwise(found)]
    assert min(gaps) > 0
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_values_that_are_not_finite_leave_a_gap_and_are_told():
    chart = _chart([3.0, 2.0, math.nan, math.inf, 1.0, 1.5])
    assert chart.curves[0].path.count("M") == 2
    assert "nan" not in chart.curves[0].path
    assert "2 records are not finite." in chart.summary


def test_a_curve_without_a_finite_value_is_empty():
    chart = _chart([math.nan, math.nan])
    assert chart.curves[0].path == ""
    assert "no finite value in 2 records" in chart.summary


def test_a_single_record_is_a_dot():
    assert _chart([1.0]).curves[0].path.endswith("h0")


def test_a_long_curve_is_averaged_and_stays_inside():
    chart = _chart([float(n % 100) for n in range(10_000)])
    points = _points(chart.curves[0])
    assert len(points) == 400
    xs, ys = zip(*points, strict=True)
    assert chart.box.left <= min(xs) < max(xs) <= chart.box.right
    assert chart.box.top <= min(ys) <= max(ys) <= chart.box.bottom


def test_the_line_to_compare_with_is_inside_the_axis():
    chart = _chart([50.0, 60.0], rule=1.0)
    assert chart.box.top < chart.rule.at <= chart.box.bottom


def test_curves_of_several_runs_share_their_axes_and_are_told_apart():
    long, short = [4.0, 3.0, 2.0, 1.0], [3.0, 2.0]
    chart = _chart(_line(long, "a", 2), _line(short, "b", 3))
    first, second = (_points(curve) for curve in chart.curves)
    assert first[1] == pytest.approx((second[1][0], second[0][1]))  # 3.0, at steps 20 and 10.
    assert [curve.style for curve in chart.curves] == [2, 3]
    assert all(curve.marks for curve in chart.curves)
    assert chart.summary == "a: 4 to 1, 1 to 4 in all. b: 3 to 2, 2 to 3 in all."
    assert _chart(long).curves[0].marks == ()


def test_dots_stand_where_their_scores_are():
    scores = {
        "svm": {"random": ScoreRange(10.0, 5.0, 20.0), "a": ScoreRange(40.0, 40.0, 40.0)},
        "knn": {"a": ScoreRange(20.0, 20.0, 20.0)},  # The random trunk has failed.
    }
    chart = dot_chart(scores, {"random": 0, "a": 2})
    svm, knn = chart.rows
    random, a = svm.dots
    assert random.low < random.x < random.high == pytest.approx(knn.dots[0].x)
    assert random.high < a.x == a.low == a.high <= chart.box.right
    assert random.y < a.y < knn.dots[0].y < chart.box.bottom
    assert [dot.style for dot in (*svm.dots, *knn.dots)] == [0, 2, 2]


def test_a_score_that_is_lacking_breaks_the_line():
    steps = Steps("x", "Layers", ["1", "2", "3", "4"], chance=0.0)
    whole = {place: ScoreRange(float(place), float(place), float(place)) for place in steps.places}
    part = {place: reach for place, reach in whole.items() if place != "2"}
    chart = score_chart(steps, {"a": whole, "b": part}, {"a": 2, "b": 3})
    assert [curve.path.count("M") for curve in chart.curves] == [1, 2]
    assert [len(curve.marks) for curve in chart.curves] == [4, 3]
    assert chart.rule.at == pytest.approx(chart.box.bottom)
    heights = [mark.y for mark in chart.curves[0].marks]
    assert heights == sorted(heights, reverse=True)
    assert chart.summary.startswith("Highest: a 4.0")


def test_many_styles_differ_in_colour_or_marker():
    styles = list(itertools.islice(own_styles(), 18))
    assert len({(style % 5, style % 6) for style in styles}) == len(styles)
    assert not {style % 5 for style in styles} & {0, 1}


def test_a_huge_number_stays_short():
    assert number(1.5e30) == "1.5e+30"
