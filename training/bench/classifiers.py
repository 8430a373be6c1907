"""SVMs against scikit-learn, and the probe of all layers against that of the last."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from pipeline.bench.contest import Steps
from training.bench.extraction import POOLINGS, SVM, kept_rows
from training.transfer.frozen.features import frozen_features
from training.transfer.frozen.linear import LinearConfig, run_linear
from training.transfer.frozen.svm import LayerFeatures, run_svm, scaled, score_layer
from training.transfer.job import NamedTrunk, Progress, Setting

_PATIENCE_S = 300.0
"""Limit for scikit-learn in a round: of 100 classes it takes minutes a layer, an hour the last."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """The result of a call, and what it took."""

    found: Any
    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """CPU time of all threads of this process, including those that spin while they wait."""


def measure_svms(
    setting: Setting, trunk: NamedTrunk, theirs: Path, rounds: int, step: Steps
) -> dict[str, Any]:
    """Time our SVMs of all layers, and both solvers on features of the torchvision loop.

    Features are extracted before: the seconds are for reading, scaling, choosing a cost and
    testing. The loop normalises its views differently, so its features are not ours; the two
    solvers are compared on the loop's, layer by layer, as far as scikit-learn gets in time.

    Args:
        setting: Images, and threads: scikit-learn fits a fold in each.
        trunk: Trunk of our features.
        theirs: Folder with SIDE.LAYER.npy of the torchvision loop.
        rounds: Number of rounds of all three.
        step: Hears of each turn, and of each layer within scikit-learn's long one.
    """
    step("our features")
    frozen = frozen_features(setting, trunk, 0, POOLINGS, _quiet)
    runs, ours, others = [], [], []
    for number in range(1, rounds + 1):
        what = f"SVMs, round {number} of {rounds}"
        step(f"{what}: ours")
        runs.append(_timed(partial(run_svm, SVM, setting, trunk, _quiet)))
        step(f"{what}: ours on the features of the torchvision loop")
        ours.append([_timed(partial(_ours_on, theirs, name, setting)) for name in frozen.layers])
        step(f"{what}: scikit-learn on the same")
        others.append(_by_sklearn(theirs, frozen.layers, setting, step))
    layers = [
        {
            "layer": name,
            "svm_score": score.score,
            "svm_on_theirs": mine.found,
            "svm_on_theirs_seconds": mine.seconds,
            "sklearn_score": other and other.found,
            "sklearn_seconds": other and other.seconds,
        }
        for name, score, mine, other in zip_longest(
            frozen.layers, runs[0].found, ours[0], others[0]
        )
    ]
    both = layers[: len(others[0])]
    return {
        "svm_seconds": median(one.seconds for one in runs),
        "svm_cpu_seconds": median(one.cpu_seconds for one in runs),
        "svm_layers": len(layers),
        "svm_ratio": _ratio(ours, others, "seconds"),
        "svm_cpu_ratio": _ratio(ours, others, "cpu_seconds"),
        "sklearn_seconds": median(sum(one.seconds for one in other) for other in others),
        "sklearn_layers": len(both),
        **{
            key: float(np.mean([row[key] for row in both]))
            for key in ("svm_score", "sklearn_score", "svm_on_theirs")
        },
        "kept_images_per_s": frozen.images_per_s,
        "layers": layers,
    }


def measure_probes(
    setting: Setting, trunk: NamedTrunk, *, epochs: int, rounds: int, step: Steps
) -> dict[str, Any]:
    """Time the linear probe of all layers and that of the last, on the same schedule."""
    last = trunk.build(0).stage_names[-1:]
    jobs = {
        "all": LinearConfig(name="linear", epochs=epochs),
        "last": LinearConfig(name="linear", epochs=epochs, layers=last),
    }
    timed: dict[str, list[_Timed]] = {name: [] for name in jobs}
    for number in range(1, rounds + 1):
        for name, job in jobs.items():
            step(f"probes, round {number} of {rounds}: {name}")
            timed[name].append(_timed(partial(run_linear, job, setting, trunk, _quiet)))
    pairs = [*zip(timed["all"], timed["last"], strict=True)]
    return {
        "probe_all_seconds": median(one.seconds for one in timed["all"]),
        "probe_last_seconds": median(one.seconds for one in timed["last"]),
        "probe_ratio": median(a.seconds / b.seconds for a, b in pairs),
        "probe_cpu_ratio": median(a.cpu_seconds / b.cpu_seconds for a, b in pairs),
        "epochs": epochs,
        "rounds": {name: [one.seconds for one in ones] for name, ones in timed.items()},
    }


def _ours_on(folder: Path, layer: str, setting: Setting) -> float:
    """Score a layer of the torchvision loop with our solver, percent."""
    task = setting.task
    rows = scaled(*kept_rows(folder, layer), setting.device, multi_label=False)
    return score_layer(LayerFeatures(*rows, task.train.targets, task.test.targets), SVM).score


def _by_sklearn(folder: Path, layers: Sequence[str], setting: Setting, step: Steps) -> list[_Timed]:
    """Score one layer after the other with scikit-learn; none begins after `_PATIENCE_S`."""
    found: list[_Timed] = []
    for layer in layers:
        if sum(one.seconds for one in found) > _PATIENCE_S:
            break
        step.within(f"SVMs of scikit-learn: {layer}")
        found.append(_timed(partial(_sklearn_score, folder, layer, setting)))
    return found


def _sklearn_score(folder: Path, layer: str, setting: Setting) -> float:
    """Choose the cost, fit and test on a layer; mean accuracy of the classes, percent.

    Loss, costs, folds and scaling are those of the job svm. Folds are fitted in threads: liblinear
    releases the GIL.
    """
    task = setting.task
    train, test = kept_rows(folder, layer)
    scaler = StandardScaler().fit(train)
    search = GridSearchCV(
        LinearSVC(loss="squared_hinge", dual="auto"),
        {"C": SVM.costs_for(multi_label=False)},
        cv=StratifiedKFold(SVM.folds, shuffle=True, random_state=0),
        scoring="balanced_accuracy",
    )
    with joblib.parallel_config("threading", n_jobs=setting.threads):
        search.fit(scaler.transform(train), task.train.targets)
    return 100 * float(search.score(scaler.transform(test), task.test.targets))


def _ratio(
    ours: Sequence[Sequence[_Timed]], others: Sequence[Sequence[_Timed]], what: str
) -> float:
    """Divide scikit-learn's time by ours for the same layers; median of the rounds."""
    found: float = median(
        sum(getattr(one, what) for one in theirs)
        / sum(getattr(one, what) for one in mine[: len(theirs)])
        for mine, theirs in zip(ours, others, strict=True)
    )
    return found


def _timed(call: Callable[[], Any]) -> _Timed:
    started, spent = time.perf_counter(), time.process_time()
    found = call()
    return _Timed(found, time.perf_counter() - started, time.process_time() - spent)


_quiet: Progress = lambda what, done, total: None  # noqa: E731
