import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.transfer.average_precision import (
    average_precision,
    average_precisions,
    defined_mean,
)

RANKING = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def scored(*shown):
    """Scores that fall by rank, and what is shown there."""
    return np.linspace(1, 0.1, len(shown)), np.array(shown, bool)


@pytest.mark.parametrize(
    ("shown", "area", "eleven"),
    [
        ((1,), 1.0, 1.0),
        ((1, 1, 0, 0), 1.0, 1.0),
        ((0, 1), 1 / 2, 1 / 2),
        # Best precisions 1 up to recall 1/2, then 2/3; of 0, 0.1, ... 1 six are up to 1/2.
        ((1, 0, 1, 0), (1 + 2 / 3) / 2, (6 * 1 + 5 * 2 / 3) / 11),
        # The precision rises from 1/2 to 2/3 and 3/4: the last is the best everywhere.
        ((0, 1, 1, 1), 3 / 4, 3 / 4),
        # Recalls 1/3, 2/3, 1 at precisions 1, 2/3, 3/5; 4, 3 and 4 of the eleven.
        ((1, 0, 1, 0, 1), (1 + 2 / 3 + 3 / 5) / 3, (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11),
        # Ten positives: the recall 3/10 is reached by three, though 3 * 0.1 > 0.3 in floats.
        ((1, 1, 1, *[0] * 93, *[1] * 7), None, (4 * 1 + 7 * 10 / 103) / 11),
    ],
)
def test_values_worked_out_by_hand(shown, area, eleven):
    scores, positives = scored(*shown)
    if area is not None:
        assert average_precision(scores, positives, definition="area") == pytest.approx(area)
    assert average_precision(scores, positives, definition="11_point") == pytest.approx(eleven)


@pytest.mark.parametrize("definition", ["area", "11_point"])
def test_without_a_positive_it_is_undefined_and_not_0(definition):
    none = np.zeros(3, bool)
    assert math.isnan(average_precision(np.arange(3.0), none, definition=definition))
    nothing = np.empty(0)
    assert math.isnan(average_precision(nothing, nothing.astype(bool), definition=definition))


def test_ignored_images_count_as_if_absent():
    scores, positives = scored(0, 1, 0, 0, 1)
    ignore = np.array([True, False, False, True, False])
    kept = average_precision(scores[~ignore], positives[~ignore], definition="area")
    assert average_precision(scores, positives, definition="area", ignore=ignore) == kept
    assert kept > average_precision(scores, positives, definition="area")


def test_tied_scores_share_one_threshold():
    scores, positives = np.array([0.5, 0.5, 0.5, 0.1]), np.array([True, False, False, True])
    # 1 of 3 at recall 1/2, then 2 of 4: the best is 1/2 at both.
    assert average_precision(scores, positives, definition="area") == pytest.approx(1 / 2)


@given(RANKING, st.randoms(use_true_random=False), st.sampled_from(["area", "11_point"]))
def test_the_order_of_the_images_changes_nothing(ranking, random, definition):
    mixed = random.sample(ranking, len(ranking))
    values = [
        average_precision(
            np.array([s for s, _ in pairs], float),
            np.array([p for _, p in pairs]),
            definition=definition,
        )
        for pairs in (ranking, mixed)
    ]
    assert values[0] == values[1] or all(map(math.isnan, values))


@given(RANKING, st.sampled_from(["area", "11_point"]))
def test_it_equals_the_definition_written_as_loops(ranking, definition):
    scores, positives = np.array([s for s, _ in ranking]), np.array([p for _, p in ranking])
    value = average_precision(scores.astype(float), positives, definition=definition)
    total = positives.sum()
    if not total:
        assert math.isnan(value)
        return
    curve = [
        (int(positives[scores >= t].sum()), positives[scores >= t].mean()) for t in set(scores)
    ]
    if definition == "area":
        levels = [(k, total) for k in range(1, total + 1)]
    else:
        levels = [(k, 10) for k in range(11)]
    best = [
        max((p for hits, p in curve if hits * of >= k * total), default=0.0) for k, of in levels
    ]
    assert value == pytest.approx(np.mean(best))


def test_classes_without_a_positive_are_excluded_from_the_mean():
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4], [0.5, 0.5, 0.5]])
    targets = np.array([[1, 0, 0], [0, 0, -1], [0, 1, -1]])
    each = average_precisions(scores, targets, definition="area")
    np.testing.assert_allclose(each, [1, 1 / 2, math.nan])
    assert defined_mean(each) == pytest.approx(3 / 4)
    none = average_precisions(scores, np.zeros_like(targets), definition="area")
    assert math.isnan(defined_mean(none))


def test_difficult_images_are_ignored_for_their_class_alone():
    scores = np.array([[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]])
    targets = np.array([[-1, 0], [1, 1], [0, 0]])
    each = average_precisions(scores, targets, definition="area")
    np.testing.assert_allclose(each, [1, 1 / 2])


@given(
    arrays.arrays(np.float64, 30, elements=st.floats(-5, 5), unique=True),
    arrays.arrays(np.bool_, 30),
)
def test_better_scores_for_a_positive_never_lower_it(scores, positives):
    if not positives.any():
        return
    before = average_precision(scores, positives, definition="area")
    raised = scores.copy()
    raised[np.flatnonzero(positives)[0]] = 10
    assert average_precision(raised, positives, definition="area") >= before - 1e-12


@pytest.mark.parametrize(
    ("scores", "message"),
    [(np.array([1.0]), "must both be"), (np.array([1.0, np.nan]), "scores hold NaN")],
)
def test_what_cannot_be_ranked_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        average_precision(scores, np.array([True, False]), definition="area")
