"""Layer locking (Noroozi and Favaro 2016, section 4.1): what is the trunk worth up to a stage?"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field

from pipeline.config import Config, ConfigError
from training.models.trunks import Trunk
from training.transfer.average_precision import Definition
from training.transfer.images.augmented import VIEWS_IN_WORDS, TestViews
from training.transfer.job import NamedTrunk, Progress, Score, Setting
from training.transfer.tuned.classification import Evaluation, judge, metric_of
from training.transfer.tuned.classifier import renew_stages
from training.transfer.tuned.train import FitConfig, evaluate_classifier, fit, make_classifier


class LockConfig(Config):
    """The first stages are the trunk's and locked; all behind them is drawn anew and trained."""

    name: Literal["lock"]
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    """Last locked stages, one score each; every stage of the trunk where this is left out."""
    training: FitConfig = FitConfig()
    test_views: TestViews = "central"
    """The paper takes ten_random."""
    average_precision: Definition = "area"
    """Definition, where an image may show several classes."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """What one seed found."""

    judged: Evaluation
    steps: int
    loss: float
    """Of the last step."""
    seconds: float


def run_lock(
    job: LockConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Lock the trunk up to each stage, train what is behind it from scratch, and test.

    Stages behind the locked ones have the same fresh weights for every trunk of a seed.

    Raises:
        ConfigError: A layer is no stage of the trunk, or training diverged.
    """
    stage_names = trunk.build(setting.seeds[0]).stage_names
    layers = job.layers or stage_names
    for layer in layers:
        if layer not in stage_names:
            raise ConfigError(
                f"layers (={layer}) must be stages of the trunk: {', '.join(stage_names)}."
            )
    return [_locked(job, setting, trunk, layer, on_progress) for layer in layers]


def _locked(
    job: LockConfig, setting: Setting, trunk: NamedTrunk, layer: str, on_progress: Progress
) -> Score:
    trained = []
    for number, seed in enumerate(setting.seeds, start=1):
        say = f"{trunk.name}: locked up to {layer}, seed {number} of {len(setting.seeds)}"
        made = trunk.build(seed)
        trained.append(_train(job, setting, made, (layer, seed), partial(on_progress, say)))
    task = setting.task
    return Score(
        job=job.name,
        trunk=trunk.name,
        layer=layer,
        metric=(
            f"{metric_of(task, job.average_precision)}; stages up to this one locked, the others "
            f"trained from fresh weights, tested on {VIEWS_IN_WORDS[job.test_views]}"
        ),
        scores=tuple(one.judged.score for one in trained),
        train_images=len(task.train.sample_ids),
        test_images=len(task.test.sample_ids),
        seconds=sum(one.seconds for one in trained),
        details={
            "steps": [one.steps for one in trained],
            "last_loss": [one.loss for one in trained],
            "by_seed": [one.judged.details for one in trained],
        },
    )


def _train(
    job: LockConfig,
    setting: Setting,
    trunk: Trunk,
    locked: tuple[str, int],
    on_progress: Callable[[int, int], None],
) -> _Trained:
    started = time.monotonic()
    layer, seed = locked
    num_locked = trunk.stage_names.index(layer) + 1
    renewed = renew_stages(trunk, num_kept=num_locked, seed=seed)
    model = make_classifier(renewed, job.training, setting, num_locked=num_locked, seed=seed)
    step = None
    for step in fit(model, setting.task.train, job.training, setting, seed=seed):
        on_progress(round(1000 * step.share), 1000)
    scores = evaluate_classifier(model, job.test_views, job.training, setting, seed=seed)
    judged = judge(scores, setting.task, job.average_precision)
    assert step is not None
    return _Trained(judged, step.number, step.loss.item(), time.monotonic() - started)
