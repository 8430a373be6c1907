"""The one choice between pretexts: how a batch is planned, and which graph makes its views."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import assert_never

from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.draws import Draws
from pipeline.pretext.context import ContextConfig, plan_context
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.pretext.multitask import MultitaskConfig, Task, tasks_of
from pipeline.pretext.plan import TilePlan
from pipeline.pretext.rotation import RotationConfig, plan_rotation
from pipeline.shards.store import Samples

PretextConfig = Annotated[
    JigsawConfig | ContextConfig | RotationConfig | MultitaskConfig, Field(discriminator="name")
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


def plan_views(pretext: PretextConfig, samples: Samples, draws: Draws) -> ViewPlan:
    """Draw the views of a batch."""
    plans = [plan_task(task, samples.heights, samples.widths, draws) for task in tasks_of(pretext)]
    arrays = [array for plan in plans for array in plan.arrays()]
    labels = np.concatenate([plan.labels for plan in plans], axis=1)
    return ViewPlan(labels, tuple(plans), (samples.payloads, *arrays))


def plan_task(
    task: Task, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw the views of one task for images of the given sizes."""
    match task:
        case JigsawConfig():
            return plan_jigsaw(task, heights, widths, draws)
        case ContextConfig():
            return plan_context(task, heights, widths, draws)
        case RotationConfig():
            return plan_rotation(task, heights, widths, draws)
        case _:
            assert_never(task)


def view_graph(feed: Feed, pretext: PretextConfig, options: GraphOptions) -> Graph:
    """Build the graph that makes the views; `feed` gives the arrays of `plan_views`.

    Its output is uint8 (B, T, tile_px, tile_px, 3), or, of several tasks, (B, N): the tiles of all
    tasks in a row, for `split_views`.
    """
    return tile_graph(feed, [task.tiles for task in tasks_of(pretext)], options)
