"""What was drawn for each image of a batch, task by task: rows of plans in the pretexts' words."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from pipeline.loading.graph_runner import PlannedBatch
from pipeline.pretext.describe import common_draws
from pipeline.pretext.multitask import AnyDraws, PretextConfig, Task, tasks_of
from pipeline.pretext.normalize import split_labels
from pipeline.pretext.plan import TilePlan


def describe_draws(
    pretext: PretextConfig, planned: PlannedBatch, positions: Sequence[int]
) -> list[tuple[AnyDraws, ...]]:
    """Say what every task drew for every image of a batch.

    Args:
        pretext: Whose tasks they are.
        planned: The batch.
        positions: (B,), positions of its images in the global batch.
    """
    labels = split_labels(pretext, torch.from_numpy(planned.labels))
    found = []
    for task, plan, asked in zip(tasks_of(pretext), planned.tasks, labels, strict=True):
        of_row = functools.partial(_describe_row, task, plan, positions)
        found.append([of_row(row, one) for row, one in enumerate(asked.tolist())])
    return list(zip(*found, strict=True))


def _describe_row(
    task: Task, plan: TilePlan, positions: Sequence[int], row: int, labels: list[int]
) -> AnyDraws:
    common = common_draws(task.cells, task.tiles, plan, row)
    return task.describe(common, labels, lambda on: positions[row + on])


def listed(drawn: Mapping[str, AnyDraws]) -> dict[str, Any]:
    """Return draws as JSON holds them: those of a single task, or of several by their names."""
    short = {name: _short(asdict(draws)) for name, draws in drawn.items()}
    return next(iter(short.values())) if len(short) == 1 else short


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None and value != ()}


def only_rows(plan: TilePlan, rows: slice) -> TilePlan:
    """Keep some images' rows of a plan."""
    names = TilePlan.__dataclass_fields__
    return replace(plan, **{name: getattr(plan, name)[rows] for name in names})
