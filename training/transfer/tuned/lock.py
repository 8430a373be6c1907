"""Layer locking (Noroozi and Favaro 2016, section 4.1): how useful is the trunk up to a stage?"""

from functools import partial
from typing import Literal

from pydantic import Field

from pipeline.config import Config, ConfigError
from training.transfer.average_precision import Definition
from training.transfer.classification import metric_of
from training.transfer.images.augmented import VIEWS_IN_WORDS, TestViews
from training.transfer.job import NamedTrunk, Progress, Score, Setting, each_seed
from training.transfer.tuned.train import (
    FitConfig,
    TuningPlan,
    details_of,
    renew_stages,
    train_and_test,
)


class LockConfig(Config):
    """The trunk's first stages are locked; all later stages are drawn anew and trained."""

    name: Literal["lock"]
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    """Last locked stage of each score. Default: every stage of the trunk."""
    training: FitConfig = FitConfig()
    test_views: TestViews = "central"
    """The paper uses ten_random."""
    average_precision: Definition = "area"
    """Definition to use for multi-label images."""


def run_lock(
    job: LockConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Lock the trunk up to each stage, train the rest from scratch, and test.

    Stages after the locked ones have the same fresh weights for every trunk of a seed.

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
    task, tuned = setting.task, []
    for seed, say in each_seed(f"{trunk.name}: locked up to {layer}", setting.seeds):
        built = trunk.build(seed)
        plan = TuningPlan(
            training=job.training,
            num_locked=built.stage_names.index(layer) + 1,
            test_views=job.test_views,
            definition=job.average_precision,
        )
        renewed = renew_stages(built, num_kept=plan.num_locked, seed=seed)
        report = partial(on_progress, say)
        tuned.append(train_and_test(renewed, plan, setting, seed=seed, on_progress=report))
    return Score(
        job=job.name,
        trunk=trunk.name,
        layer=layer,
        metric=(
            f"{metric_of(task, job.average_precision)}; stages up to this one locked, the others "
            f"trained from fresh weights, tested on {VIEWS_IN_WORDS[job.test_views]}"
        ),
        scores=tuple(one.final.score for one in tuned),
        train_images=len(task.train.sample_ids),
        test_images=len(task.test.sample_ids),
        seconds=sum(one.seconds for one in tuned),
        details=details_of(tuned),
    )
