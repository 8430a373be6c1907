"""Linear SVMs on frozen features, their cost chosen by cross-validation."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from training.transfer.config import TransferConfig
from training.transfer.features import Features

METRIC = "mean per-class accuracy of a linear SVM, percent"


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the features to train on and to test on."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerScore:
    """How well one layer's features serve a linear classifier."""

    score: float
    """METRIC, on the test images."""
    cost: float
    """C that cross-validation took."""
    dimension: int


def score_layers(
    features: Features,
    labels: NDArray[np.int64],
    split: Split,
    config: TransferConfig,
    on_progress: Callable[[str], None],
) -> dict[str, LayerScore]:
    """Fit and test an SVM on every layer; `on_progress` gets the name of each layer done.

    liblinear runs without Python's lock, so threads use all cores.
    """
    with ThreadPoolExecutor(config.threads) as pool:
        tasks = {
            pool.submit(_score, rows, labels, split, config): name
            for name, rows in features.items()
        }
        done = {}
        for task in as_completed(tasks):
            done[tasks[task]] = task.result()
            on_progress(tasks[task])
    return {name: done[name] for name in features}


def _score(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    split: Split,
    config: TransferConfig,
) -> LayerScore:
    train = features[split.train].astype(np.float64)
    center, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    train = (train - center) / scale
    test = (features[split.test].astype(np.float64) - center) / scale
    cost = _choose_cost(train, labels[split.train], config)
    guesses = _fit(train, labels[split.train], cost).predict(test)
    score = 100 * mean_class_accuracy(labels[split.test], guesses)
    return LayerScore(score=score, cost=cost, dimension=features.shape[1])


def _choose_cost(
    rows: NDArray[np.float64], labels: NDArray[np.int64], config: TransferConfig
) -> float:
    """Return the cost with the best mean accuracy over the folds; the smallest among equals."""
    if len(config.costs) == 1:
        return config.costs[0]
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=0)
    totals = dict.fromkeys(sorted(config.costs), 0.0)
    for fit_on, check_on in folds.split(rows, labels):
        for cost in totals:
            guesses = _fit(rows[fit_on], labels[fit_on], cost).predict(rows[check_on])
            totals[cost] += mean_class_accuracy(labels[check_on], guesses)
    return max(totals, key=lambda cost: totals[cost])


def _fit(rows: NDArray[np.float64], labels: NDArray[np.int64], cost: float) -> LinearSVC:
    # One against the rest, squared hinge. The tolerance is liblinear's own for its dual solver.
    return LinearSVC(C=cost, dual=True, tol=0.1, max_iter=300, random_state=0).fit(rows, labels)


def mean_class_accuracy(labels: NDArray[np.int64], guesses: NDArray[np.int64]) -> float:
    """Average the accuracy over the classes in `labels`, so that large classes do not rule."""
    return float(np.mean([(guesses[labels == k] == k).mean() for k in np.unique(labels)]))
