"""Fine-tuning: a fresh output layer, and all weights trained, or those from a stage on."""

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
from training.transfer.tuned.classifier import HEAD
from training.transfer.tuned.train import FitConfig, evaluate_classifier, fit, make_classifier


class FinetuneConfig(Config):
    """Fine-tuning on labels of one class an image, or several (as for VOC 2007)."""

    name: Literal["finetune"]
    from_layer: str | None = None
    """First stage that is trained; those before it stay as they came. head: the classifier alone.
    All stages are trained where this is left out."""
    training: FitConfig = FitConfig()
    early_share: float = Field(0.2, gt=0, le=1)
    """Share of the training behind which the early score is taken."""
    test_views: TestViews | None = None
    """central where every image has one class and this is left out, ten_random where it may have
    several."""
    average_precision: Definition = "area"
    """Definition, where an image may show several classes."""


@dataclass(frozen=True, slots=True)
class _Tuned:
    """What one seed found."""

    early: Evaluation
    final: Evaluation
    steps: int
    loss: float
    """Of the last step."""
    seconds: float


def run_finetune(
    job: FinetuneConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a trunk with a fresh classifier, and test it early and at the end.

    Raises:
        ConfigError: `from_layer` is no stage of the trunk, or training diverged.
    """
    tuned = []
    for number, seed in enumerate(setting.seeds, start=1):
        say = f"{trunk.name}: fine-tuning, seed {number} of {len(setting.seeds)}"
        tuned.append(_tune(job, setting, trunk.build(seed), seed, partial(on_progress, say)))
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=job.from_layer or "",
            metric=_metric(job, setting),
            scores=tuple(one.final.score for one in tuned),
            train_images=len(setting.task.train.sample_ids),
            test_images=len(setting.task.test.sample_ids),
            seconds=sum(one.seconds for one in tuned),
            details={
                "early_share": job.early_share,
                "early_scores": [one.early.score for one in tuned],
                "steps": [one.steps for one in tuned],
                "last_loss": [one.loss for one in tuned],
                "by_seed": [one.final.details for one in tuned],
            },
        )
    ]


def _tune(
    job: FinetuneConfig,
    setting: Setting,
    trunk: Trunk,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> _Tuned:
    started = time.monotonic()
    num_locked = _first_trained(job, trunk)
    model = make_classifier(trunk, job.training, setting, num_locked=num_locked, seed=seed)
    early, step = None, None

    def tested() -> Evaluation:
        scores = evaluate_classifier(model, _views(job, setting), job.training, setting, seed=seed)
        return judge(scores, setting.task, job.average_precision)

    for step in fit(model, setting.task.train, job.training, setting, seed=seed):
        on_progress(round(1000 * step.share), 1000)
        if early is None and step.share >= job.early_share:
            early = tested()
    assert step is not None
    assert early is not None  # The last step has share 1.
    final = early if job.early_share == 1 else tested()
    return _Tuned(early, final, step.number, step.loss.item(), time.monotonic() - started)


def _first_trained(job: FinetuneConfig, trunk: Trunk) -> int:
    names = (*trunk.stage_names, HEAD)
    if job.from_layer is None:
        return 0
    if job.from_layer not in names:
        raise ConfigError(
            f"from_layer (={job.from_layer}) must be a stage of the trunk or {HEAD}: "
            f"{', '.join(names)}."
        )
    return names.index(job.from_layer)


def _views(job: FinetuneConfig, setting: Setting) -> TestViews:
    return job.test_views or ("ten_random" if setting.task.test.is_multi_label else "central")


def _metric(job: FinetuneConfig, setting: Setting) -> str:
    match job.from_layer:
        case None:
            trained = "all weights trained"
        case "head":
            trained = "the classifier alone trained"
        case layer:
            trained = f"weights from {layer} on trained"
    views = VIEWS_IN_WORDS[_views(job, setting)]
    return f"{metric_of(setting.task, job.average_precision)}; {trained}, tested on {views}"
