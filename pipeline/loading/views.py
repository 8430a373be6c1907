"""The one choice between pretexts: how a batch is planned, and which graph makes its views."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import assert_never

from pipeline.config import ConfigError
from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.loading.draws import Draws
from pipeline.loading.mixture import Mixture
from pipeline.pretext.context import ContextConfig, plan_context
from pipeline.pretext.jigsaw import JigsawConfig, draw_foreign, plan_jigsaw
from pipeline.pretext.multitask import MultitaskConfig, Task, tasks_of
from pipeline.pretext.plan import TilePlan
from pipeline.pretext.rotation import RotationConfig, plan_rotation
from pipeline.pretext.supervised import SupervisedConfig, plan_supervised, taught_classes
from pipeline.shards.store import Samples

PretextConfig = Annotated[
    JigsawConfig | ContextConfig | RotationConfig | SupervisedConfig | MultitaskConfig,
    Field(discriminator="name"),
]
"""Any pretext."""


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What a batch asks, and what its graph is fed."""

    labels: NDArray[np.int64]
    """(B, L), those of all tasks side by side; each task says what they mean."""
    tasks: tuple[TilePlan, ...]
    """Of each task."""
    arrays: tuple[Arrays, ...]
    """In the order of the graph's inputs."""


def plan_views(
    pretext: PretextConfig, samples: Samples, draws: Draws, mates: NDArray[np.int64]
) -> ViewPlan:
    """Draw the views of a batch, and what is asked of them; `mates` as `Mixture.mates` says."""
    tasks = tasks_of(pretext)
    plans = [_plan_samples(task, samples, draws) for task in tasks]
    arrays = [array for plan in plans for array in plan.arrays()]
    labels = [
        np.concatenate([plan.labels, _foreign(task, draws, mates)], axis=1)
        for task, plan in zip(tasks, plans, strict=True)
    ]
    return ViewPlan(np.concatenate(labels, axis=1), tuple(plans), (samples.payloads, *arrays))


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


def _plan_samples(task: Task, samples: Samples, draws: Draws) -> TilePlan:
    plan = plan_task(task, samples.heights, samples.widths, draws)
    if not isinstance(task, SupervisedConfig):
        return plan
    return replace(plan, labels=taught_classes(task, samples.keys, samples.labels))


def check_lanes(pretext: PretextConfig, data: Mixture) -> None:
    """Refuse foreign tiles where no other image of the lane is at hand.

    Raises:
        ConfigError: A lane gives a single sample to a step.
    """
    least = min(one.order.config.lane_share for one in data.sets)
    for task in tasks_of(pretext):
        if isinstance(task, JigsawConfig) and task.max_foreign_tiles and least == 1:
            raise ConfigError(
                f"max_foreign_tiles (={task.max_foreign_tiles}) needs two samples of a lane in a "
                "step, but global_batch / num_lanes is 1; raise global_batch or lower num_lanes."
            )


def _foreign(task: Task, draws: Draws, mates: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(task, JigsawConfig) and task.max_foreign_tiles:
        return draw_foreign(task, draws, mates)
    return np.empty((len(mates), 0), np.int64)


def view_graph(feed: Feed, pretext: PretextConfig, options: GraphOptions) -> Graph:
    """Build the graph that makes the views; `feed` gives the arrays of `plan_views`.

    Its output is uint8 (B, T, tile_px, tile_px, 3), or, of several tasks, (B, N): the tiles of all
    tasks in a row, for `split_views`.
    """
    return tile_graph(feed, [task.tiles for task in tasks_of(pretext)], options)
