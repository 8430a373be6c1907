"""Several pretexts on one trunk, at one decode of each image (Doersch and Zisserman 2017)."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self, assert_never

from pipeline.config import Config
from pipeline.pretext.context import ContextConfig, ContextDraws, plan_context
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, JigsawDraws, plan_jigsaw
from pipeline.pretext.plan import TilePlan
from pipeline.pretext.rotation import RotationConfig, RotationDraws, plan_rotation
from pipeline.pretext.supervised import SupervisedConfig, SupervisedDraws, plan_supervised

Task = JigsawConfig | ContextConfig | RotationConfig | SupervisedConfig
"""A pretext that asks one kind of question."""
AnyDraws = JigsawDraws | ContextDraws | RotationDraws | SupervisedDraws
"""What a task drew for one image."""


class MultitaskConfig(Config):
    """Tasks that share trunk and decode; the loss is their weighted sum."""

    name: Literal["multitask"]
    tasks: tuple[Annotated[Task, Field(discriminator="name")], ...] = Field(min_length=2)
    """Each kind at most once: the draws of a view are named by its kind."""
    weights: tuple[Annotated[float, Field(gt=0)], ...]
    """Weight of each task's loss."""

    @model_validator(mode="after")
    def _every_task_has_its_weight(self) -> Self:
        if len(self.weights) != len(self.tasks):
            raise ValueError(
                f"weights (={list(self.weights)}) must be {len(self.tasks)}, one for each task."
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks (={names}) must be of different kinds; leave one out.")
        return self

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess, the mean over the tasks."""
        return sum(task.chance for task in self.tasks) / len(self.tasks)


PretextConfig = Annotated[Task | MultitaskConfig, Field(discriminator="name")]
"""Any pretext."""


def tasks_of(pretext: PretextConfig) -> tuple[Task, ...]:
    """Return the tasks of any pretext; a single one is its own only task."""
    return pretext.tasks if isinstance(pretext, MultitaskConfig) else (pretext,)


def weights_of(pretext: PretextConfig) -> tuple[float, ...]:
    """Return the weight of each task's loss; 1 for a single one."""
    return pretext.weights if isinstance(pretext, MultitaskConfig) else (1.0,)


def plan_task(
    task: Task, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw the views of one task for images of the given sizes; no class of an image is known."""
    match task:
        case JigsawConfig():
            return plan_jigsaw(task, heights, widths, draws)
        case ContextConfig():
            return plan_context(task, heights, widths, draws)
        case RotationConfig():
            return plan_rotation(task, heights, widths, draws)
        case SupervisedConfig():
            return plan_supervised(task, heights, widths, draws)
        case _:
            assert_never(task)
