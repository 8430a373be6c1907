"""Fine-tuning: a fresh output layer, and all weights trained, or those from a stage on."""

from functools import partial
from typing import Literal

from pydantic import Field

from pipeline.config import Config, ConfigError
from training.models.trunks import Trunk
from training.transfer.average_precision import Definition
from training.transfer.classification import metric_of
from training.transfer.images.augmented import VIEWS_IN_WORDS, TestViews
from training.transfer.job import NamedTrunk, Progress, Score, Setting, each_seed
from training.transfer.tuned.train import HEAD, FitConfig, TuningPlan, details_of, train_and_test


class FinetuneConfig(Config):
    """Fine-tuning on single-label or multi-label images (such as VOC 2007)."""

    name: Literal["finetune"]
    from_layer: str | None = None
    """First stage that is trained; earlier stages keep their weights. head: the classifier alone.
    Default: all stages are trained."""
    training: FitConfig = FitConfig()
    early_share: float = Field(0.2, gt=0, le=1)
    """Share of the training after which the early score is taken."""
    test_views: TestViews | None = None
    """Default: central for single-label, ten_random for multi-label images."""
    average_precision: Definition = "area"
    """Definition to use for multi-label images."""


def run_finetune(
    job: FinetuneConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a trunk with a fresh classifier, and test it early and at the end.

    Raises:
        ConfigError: `from_layer` is no stage of the trunk, or training diverged.
    """
    tuned = []
    for seed, say in each_seed(f"{trunk.name}: fine-tuning", setting.seeds):
        built = trunk.build(seed)
        plan = TuningPlan(
            training=job.training,
            num_locked=_first_trained(job, built),
            test_views=_views(job, setting),
            definition=job.average_precision,
            early_share=job.early_share,
        )
        report = partial(on_progress, say)
        tuned.append(train_and_test(built, plan, setting, seed=seed, on_progress=report))
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
                **details_of(tuned),
            },
        )
    ]


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
