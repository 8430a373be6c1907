import numpy as np
import pytest

from pipeline.audit.evidence import Answers, chi_square_even, chi_square_together, score_of


def answers(right, image=None, chance=0.25):
    right = np.asarray(right, np.float64)
    image = np.arange(len(right)) if image is None else np.asarray(image)
    return Answers(right, image, chance, {"figure": 1.0})


@pytest.mark.parametrize(
    ("right", "chance", "score"),
    [
        ([1, 1, 1, 1], 0.25, 1.0),
        ([1, 0, 0, 0], 0.25, 0.0),
        ([0, 0, 0, 0], 0.25, -1 / 3),  # Worse than a blind guess.
        ([0.5, 0.5], 0.5, 0.0),  # Split answers.
    ],
)
def test_a_score_is_0_for_a_blind_guess_and_1_where_all_is_right(right, chance, score):
    assert score_of(answers(right, chance=chance), seed=0).value == pytest.approx(score)


def test_an_interval_holds_its_score_and_is_the_same_for_the_same_seed():
    found = answers(np.random.default_rng(0).random(300) < 0.4)
    score = score_of(found, seed=3)
    assert score.low < score.value < score.high
    assert score == score_of(found, seed=3)
    assert score != score_of(found, seed=4)
    assert (score.answers, score.detail) == (300, {"figure": 1.0})


def test_four_times_the_images_halve_the_interval():
    widths = []
    for num in (400, 1600):
        score = score_of(answers(np.random.default_rng(1).random(num) < 0.5), seed=0)
        widths.append(score.high - score.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)


def test_an_interval_is_that_of_the_normal_law():
    score = score_of(answers(np.repeat([0, 1], 500), chance=0.0), seed=0)
    half = 1.96 * (0.25 / 1000) ** 0.5
    assert score.low == pytest.approx(0.5 - half, abs=0.006)
    assert score.high == pytest.approx(0.5 + half, abs=0.006)


def test_intervals_hold_the_truth_19_times_in_20():
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        score = score_of(answers(rng.random(200) < 0.25), seed=seed)
        held += score.low <= 0 <= score.high
    assert 180 <= held <= 199


def test_the_bootstrap_draws_images_and_not_answers():
    # Ten answers of an image that are all alike are worth no more than one.
    right = np.random.default_rng(2).random(100) < 0.5
    alone = score_of(answers(right), seed=0)
    tenfold = score_of(answers(np.repeat(right, 10), np.repeat(np.arange(100), 10)), seed=0)
    assert (tenfold.low, tenfold.high) == pytest.approx((alone.low, alone.high))


def test_no_answers_score_0():
    assert score_of(answers([]), seed=0).value == 0
    assert score_of(answers([]), seed=0).answers == 0


def test_chi_square_agrees_with_the_tables():
    # 5.991 is the 95 % point for 2 degrees of freedom.
    counts = 10_000 + np.array([1, 0, -1]) * round((5.991 * 5000) ** 0.5)
    assert chi_square_even(counts, np.full(3, 1 / 3)).p == pytest.approx(0.05, abs=0.001)


def test_codes_that_are_equal_have_effect_1_and_independent_ones_none():
    first = np.random.default_rng(0).integers(4, size=4000)
    second = np.random.default_rng(1).integers(4, size=4000)
    assert chi_square_together(first, first).effect == pytest.approx(1, abs=0.01)
    assert chi_square_together(first, first).p < 1e-9
    assert chi_square_together(first, second).effect < 0.05
    assert chi_square_together(first, second).p > 1e-3
    assert chi_square_together(first, np.zeros_like(first)).p == 1  # One code only: no question.
