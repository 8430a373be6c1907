"""SVMs beside scikit-learn, and the probe of all layers beside that of the last one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from training.bench.extraction import Step
from training.bench.plain import rows_of
from training.bench.work import POOLINGS, SVM
from training.transfer.features import frozen_features
from training.transfer.job import NamedTrunk, Progress, Setting
from training.transfer.linear import LinearConfig, run_linear
from training.transfer.svm import Sides, run_svm, scaled, score_layer


@dataclass(frozen=True, slots=True)
class _Timed:
    """What a call gave, and what it took."""

    found: Any
    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of all threads of this process, those that spin while they wait included."""


def measure_svms(
    setting: Setting, trunk: NamedTrunk, theirs: Path, rounds: int, step: Step, within: Step
) -> dict[str, Any]:
    """Time the SVMs of all layers, ours on our features, scikit-learn's on the torchvision loop's.

    Features are there before: the seconds are those of reading, scaling, choosing a cost and
    testing. Our solver is not scikit-learn's. It scores their features, too, untimed: where the
    views are normalised another way, features differ, and solvers are compared on the same.

    Args:
        setting: Images, and threads: scikit-learn fits a fold in each.
        trunk: Whose features ours are.
        theirs: Folder with SIDE.LAYER.npy of the torchvision loop.
        rounds: How often both run.
        step: Called before each turn.
        within: Called in a long turn, with what comes next.
    """
    from training.bench.sklearn_peer import score_layers  # What it imports is not timed.

    step("our features")
    frozen = frozen_features(setting, trunk, 0, POOLINGS, _quiet)
    task, ours, others = setting.task, [], []
    for number in range(1, rounds + 1):
        step(f"SVMs, round {number} of {rounds}: ours")
        ours.append(_timed(partial(run_svm, SVM, setting, trunk, _quiet)))
        step(f"SVMs, round {number} of {rounds}: scikit-learn")
        peer = partial(score_layers, theirs, frozen.layers, task, setting.threads, within)
        others.append(_timed(peer))
    step("our SVMs on the features of the torchvision loop")
    same = [_ours_on(theirs, layer, setting) for layer in frozen.layers]
    scores = zip(frozen.layers, ours[0].found, others[0].found, same, strict=True)
    layers = [
        {"layer": layer, "svm_score": score.score, "sklearn_score": other, "svm_on_theirs": mine}
        for layer, score, other, mine in scores
    ]
    return {
        "svm_seconds": median(one.seconds for one in ours),
        "sklearn_seconds": median(one.seconds for one in others),
        "svm_ratio": median(b.seconds / a.seconds for a, b in zip(ours, others, strict=True)),
        "svm_cpu_seconds": median(one.cpu_seconds for one in ours),
        "sklearn_cpu_seconds": median(one.cpu_seconds for one in others),
        "svm_layers": len(layers),
        **{
            key: float(np.mean([row[key] for row in layers]))
            for key in ("svm_score", "sklearn_score", "svm_on_theirs")
        },
        "kept_images_per_s": frozen.images_per_s,
        "layers": layers,
    }


def measure_probes(
    setting: Setting, trunk: NamedTrunk, *, epochs: int, rounds: int, step: Step
) -> dict[str, Any]:
    """Time the linear probe of all layers and that of the last one, on the same schedule."""
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
    rows = scaled(*rows_of(folder, layer), setting.device, multi_label=False)
    return score_layer(Sides(*rows, task.train.targets, task.test.targets), SVM).score


def _timed(call: Callable[[], Any]) -> _Timed:
    started, spent = time.perf_counter(), time.process_time()
    found = call()
    return _Timed(found, time.perf_counter() - started, time.process_time() - spent)


_quiet: Progress = lambda what, done, total: None  # noqa: E731
