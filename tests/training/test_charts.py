import math
from itertools import pairwise

import pytest

from training.charts import Series, dot_chart, line_chart, number, ticks


def _chart(values, **options):
    steps = [10 * (n + 1) for n in range(len(values))]
    series = Series("x", "Something", steps, values, **{"from_zero": False, **options})
    return line_chart(series, width=320, height=180)


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
        (0, 1e30),  # A loss that has blown up.
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
    assert chart.path.count("M") == 2
    assert "nan" not in chart.path
    assert "2 records are not finite." in chart.summary


def test_a_curve_without_a_finite_value_is_empty():
    chart = _chart([math.nan, math.nan])
    assert chart.path == ""
    assert "no finite value in 2 records" in chart.summary


def test_a_single_record_is_a_dot():
    assert _chart([1.0]).path.endswith("h0")


def test_a_long_curve_is_averaged_and_stays_inside():
    chart = _chart([float(n % 100) for n in range(10_000)])
    points = chart.path.replace("M", "L").replace("h0", "").split("L")[1:]
    assert len(points) == 400
    xs, ys = zip(*(map(float, point.split()) for point in points), strict=True)
    assert chart.box.left <= min(xs) < max(xs) <= chart.box.right
    assert chart.box.top <= min(ys) <= max(ys) <= chart.box.bottom


def test_the_line_to_compare_with_is_inside_the_axis():
    chart = _chart([50.0, 60.0], rule=1.0, rule_label="chance")
    assert chart.box.top < chart.rule.at <= chart.box.bottom


def test_dots_stand_in_the_order_of_their_scores():
    scores = {"random": {"a": 10.0, "b": 30.0}, "pretrained": {"a": 40.0, "b": 20.0}}
    chart = dot_chart(scores, {"random": 30.0, "pretrained": 40.0}, 15.0)
    first, second = chart.rows
    assert [dot.x for dot in first.dots] == [first.low, first.high]
    assert [dot.x for dot in second.dots] == [second.high, second.low]
    assert [[dot.is_best for dot in row.dots] for row in chart.rows] == [
        [False, True],
        [True, False],
    ]
    assert first.low < chart.chance < second.low


def test_a_huge_number_stays_short():
    assert number(1.5e30) == "1.5e+30"
