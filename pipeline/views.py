"""The one choice between pretexts: how a batch is planned, and which graph makes its views."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_never

from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.shards.store import Samples

PretextConfig = JigsawConfig
"""Any pretext; becomes a union told apart by `name` when there are several."""


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What a batch asks, and what its graph is fed."""

    labels: NDArray[np.int64]
    """(B, ...), as the pretext defines them."""
    arrays: tuple[Arrays, ...]
    """In the order of the graph's inputs."""


def plan_views(pretext: PretextConfig, samples: Samples, draws: Draws) -> ViewPlan:
    """Draw the views of a batch."""
    match pretext:
        case JigsawConfig():
            plan = plan_jigsaw(pretext, samples.heights, samples.widths, draws)
            arrays = (samples.payloads, plan.crops, plan.anchors, plan.gray)
            return ViewPlan(plan.labels, arrays)
        case _:
            assert_never(pretext)


def view_graph(feed: Feed, pretext: PretextConfig, options: GraphOptions) -> Graph:
    """Build the graph that makes the views; `feed` gives the arrays of `plan_views`."""
    match pretext:
        case JigsawConfig():
            return tile_graph(feed, pretext, options)
        case _:
            assert_never(pretext)
