import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from training.transfer.frozen.linear_svm import fit_svms, main_axes, objective, with_constant
from training.transfer.frozen.low_shot import draw_costs
from training.transfer.frozen.svm import (
    LayerFeatures,
    SvmConfig,
    mean_class_accuracy,
    scaled,
    score_layer,
    signs_of,
)

CPU = torch.device("cpu")


def clouds(distance, *, num=240, dimension=6):
    """Two classes, 3 to 1, whose centres are `distance` apart on one axis; half are test images."""
    rng = np.random.default_rng(0)
    labels = (np.arange(num) % 4 == 0).astype(np.int64)
    rows = rng.normal(size=(num, dimension))
    rows[:, 0] += distance * labels
    return rows.astype(np.float32), labels


def score(rows, targets, *, test=None, **changes):
    half = len(rows) // 2
    train, tested = np.arange(half), np.arange(half, len(rows)) if test is None else test
    multi_label = targets.ndim == 2
    both = scaled(rows[train], rows[tested], CPU, multi_label=multi_label)
    config = SvmConfig(name="svm", **{"costs": (0.01,), **changes})
    return score_layer(LayerFeatures(*both, targets[train], targets[tested]), config)


def test_linearly_separable_classes_are_separated():
    layer = score(*clouds(12))
    assert (layer.score, layer.dimension) == (100, 6)
    assert layer.cost == pytest.approx(0.01)


def test_noise_scores_near_chance_though_one_class_is_frequent():
    assert 40 < score(*clouds(0)).score < 60  # Plain accuracy would be 75.


def test_the_scale_of_a_layer_does_not_matter():
    rows, labels = clouds(3)
    expected = score(rows, labels).score
    for scale, shift in ((1e4, 0), (0.1, 50)):
        assert score(rows * scale + shift, labels).score == pytest.approx(expected, abs=1)


def test_the_cost_is_a_given_one_and_not_chosen_by_test_images():
    rows, labels = clouds(1.5)
    costs = (0.001, 0.01, 0.1)
    layer = score(rows, labels, costs=costs)
    assert np.isclose(layer.cost, costs).any()
    first = np.array([120 + np.flatnonzero(labels[120:] == k)[0] for k in (0, 1)])
    other = score(rows, labels, test=first, costs=costs)
    assert other.cost == layer.cost
    assert other.score in (0, 50, 100)


def test_every_class_has_equal_weight():
    labels, guesses = np.array([0] * 90 + [1] * 10), np.zeros(100, dtype=np.int64)
    assert mean_class_accuracy(labels, guesses) == 0.5


@settings(max_examples=12, deadline=None)
@given(
    num=st.integers(20, 60),
    dimension=st.integers(1, 80),
    cost=st.sampled_from([0.001, 0.1, 10.0]),
    seed=st.integers(0, 999),
)
def test_the_minimum_equals_that_of_liblinear(num, dimension, cost, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num)
    labels[:2] = 0, 1
    rows = rng.normal(size=(num, dimension)) + labels[:, None] * 0.5
    theirs = LinearSVC(C=cost, dual=True, tol=1e-6, max_iter=200_000, random_state=0)
    theirs.fit(rows, labels)
    minimum = torch.tensor(np.append(theirs.coef_[0], theirs.intercept_), dtype=torch.float32)
    plain = with_constant(torch.tensor(rows, dtype=torch.float32))
    signs, _ = signs_of(labels, CPU)
    axes = main_axes(plain)
    ours = axes @ fit_svms(plain @ axes, signs, torch.full_like(signs, cost), tolerance=1e-4)
    best = objective(plain, signs[:, 1:], torch.full_like(signs[:, 1:], cost), minimum[:, None])
    found = objective(plain, signs[:, 1:], torch.full_like(signs[:, 1:], cost), ours[:, 1:])
    assert float(found) <= float(best) * (1 + 1e-3)


def test_rows_of_cost_0_are_ignored():
    rng = np.random.default_rng(0)
    rows = with_constant(torch.tensor(rng.normal(size=(40, 5)), dtype=torch.float32))
    signs = torch.tensor(rng.choice([-1.0, 1.0], (40, 3)), dtype=torch.float32)
    costs = torch.ones_like(signs)
    costs[20:] = 0
    some = fit_svms(rows[:20], signs[:20], costs[:20], tolerance=1e-6)
    assert fit_svms(rows, signs, costs, tolerance=1e-6) == pytest.approx(some, abs=1e-3)


def test_multi_label_sets_are_scored_by_average_precision_with_a_cost_per_class():
    rng = np.random.default_rng(0)
    shown = rng.random((200, 3)) < 0.3
    rows = np.abs(rng.normal(size=(200, 8)) * 0.1).astype(np.float32)
    rows[:, :2] += 2 * shown[:, :2]  # The third class cannot be learned.
    targets = shown.astype(np.int64)
    layer = score(rows, targets, costs=(0.1, 10.0))
    by_class = layer.details["score_of"]
    assert min(by_class[0], by_class[1]) > 95
    assert by_class[2] < 60
    assert layer.score == pytest.approx(np.mean(list(by_class.values())))
    assert set(layer.details["costs_of"]) <= {np.float32(0.1), np.float32(10)}


def test_difficult_ones_are_negative_in_training_and_ignored_in_the_test():
    signs, classes = signs_of(np.array([[1, -1], [0, 1], [-1, 0]]), CPU)
    assert signs.tolist() == [[1, -1], [-1, 1], [-1, -1]]
    assert classes.tolist() == [0, 1]
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.4).astype(np.int64)
    rows = np.concatenate([targets, 1 - targets], axis=1).astype(np.float32)
    plain = score(rows, targets)
    wrong = targets.copy()
    wrong[100:140] = np.where(rng.random((40, 2)) < 0.5, -1, targets[100:140])
    assert plain.score == score(rows, wrong).score == 100


@settings(max_examples=20, deadline=None)
@given(shots=st.integers(1, 5), multi_label=st.booleans(), seed=st.integers(0, 99))
def test_draws_of_few_images_are_exact_and_nested(shots, multi_label, seed):
    signs = torch.where(torch.arange(300)[:, None] % 6 == torch.arange(6), 1.0, -1.0)
    taken = draw_costs(signs, shots, multi_label=multi_label, seed=(seed, 0))
    more = draw_costs(signs, shots + 1, multi_label=multi_label, seed=(seed, 0))
    positive = signs.numpy() > 0
    assert ((taken > 0) & positive).sum(axis=0).tolist() == [shots] * 6
    others = 19 * shots if multi_label else 5 * shots
    assert ((taken > 0) & ~positive).sum(axis=0).tolist() == [others] * 6
    assert (taken <= more).all()
    assert not np.array_equal(
        taken, draw_costs(signs, shots, multi_label=multi_label, seed=(seed, 1))
    )
