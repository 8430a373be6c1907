"""The report's curves of one run or several, from their records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.pretext.multitask import PretextConfig, tasks_of, weights_of
from training.metrics import MetricsRecord
from training.report.charts import Line, LineChart, Series, line_chart

_Value = Callable[[MetricsRecord], float]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run has recorded so far."""

    label: str
    """What the legend calls the run."""
    style: int
    """Of its lines."""
    records: Sequence[MetricsRecord]
    """In their order."""
    pretext: PretextConfig | None
    """Whose chance is drawn in."""


def curves(runs: Sequence[Recorded], percent: str) -> list[LineChart]:
    """Chart loss and accuracy large, all else small; a curve for each of several tasks.

    A line to compare with is drawn where it is the same for all runs of a chart.

    Args:
        runs: Those without a record are left out.
        percent: The sign behind a percentage.
    """
    runs = [run for run in runs if run.records]
    if not runs:
        return []
    tasks = list(dict.fromkeys(name for run in runs for name in several_tasks(run.records)))
    mean = ", the mean over the tasks" if any(several_tasks(r.records) for r in runs) else ""
    loss = _series("loss", "Loss", runs, lambda r: r.loss, _blind)
    accuracy = _series(
        "accuracy", f"Pretext accuracy{mean}", runs, lambda r: 100 * r.accuracy, _chance, percent
    )
    minor = [
        *(_task_series(name, runs, percent) for name in tasks),
        _series("lr", "Learning rate", runs, lambda r: r.lr),
        _series("speed", "Images/s", runs, lambda r: r.images_per_s),
        _series(
            "starvation",
            "Waiting for the loader",
            runs,
            lambda r: 100 * r.starvation,
            None,
            percent,
        ),
    ]
    return [
        *(line_chart(series, width=440, height=220) for series in (loss, accuracy)),
        *(line_chart(series, width=320, height=170) for series in minor),
    ]


def several_tasks(records: Sequence[MetricsRecord]) -> tuple[str, ...]:
    """Name the tasks that every record knows the accuracy of; none where there is one."""
    names = tuple(records[-1].accuracy_of) if records else ()
    known = all(set(names) <= set(record.accuracy_of) for record in records)
    return names if len(names) > 1 and known else ()


def _task_series(name: str, runs: Sequence[Recorded], percent: str) -> Series:
    return _series(
        f"accuracy-{name}",
        f"Accuracy: {name}",
        [run for run in runs if name in several_tasks(run.records)],
        lambda record: 100 * record.accuracy_of[name],
        lambda run: _chances(run.pretext).get(name),
        percent,
    )


def _series(
    name: str,
    title: str,
    runs: Sequence[Recorded],
    value: _Value,
    rule: Callable[[Recorded], float | None] | None = None,
    unit: str = "",
) -> Series:
    rules = {rule(run) for run in runs} if rule else {None}
    return Series(
        name=name,
        title=title,
        lines=[
            Line(
                run.label, run.style, [r.step for r in run.records], [value(r) for r in run.records]
            )
            for run in runs
        ],
        from_zero=name != "loss",
        unit=unit,
        rule=rules.pop() if len(rules) == 1 else None,
    )


def _chance(run: Recorded) -> float | None:
    return 100 * run.pretext.chance if run.pretext else None


def _chances(pretext: PretextConfig | None) -> dict[str, float]:
    return {task.name: 100 * task.chance for task in tasks_of(pretext)} if pretext else {}


def _blind(run: Recorded) -> float | None:
    """Loss of a blind guess: of several tasks, their weighted sum."""
    if run.pretext is None:
        return None
    pairs = zip(tasks_of(run.pretext), weights_of(run.pretext), strict=True)
    return sum(-weight * math.log(task.chance) for task, weight in pairs)
