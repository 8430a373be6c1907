"""The report's curves of a run, from its records."""

import math
from collections.abc import Sequence

from pipeline.pretext.multitask import tasks_of, weights_of
from pipeline.views import PretextConfig
from training.charts import LineChart, Series, line_chart
from training.metrics import Record


def curves(
    records: Sequence[Record], pretext: PretextConfig | None, percent: str
) -> list[LineChart]:
    """Chart loss and accuracy large, all else small; a curve for each of several tasks.

    Args:
        records: Of the run, in its order.
        pretext: Whose chance is drawn in.
        percent: The sign behind a percentage.
    """
    if not records:
        return []
    steps = [record.step for record in records]
    accuracy = [100 * record.accuracy for record in records]
    names = several_tasks(records)
    title = "Pretext accuracy, the mean over the tasks" if names else "Pretext accuracy"
    chance = 100 * pretext.chance if pretext else None
    loss = Series("loss", "Loss", steps, [r.loss for r in records], False, "", _blind(pretext))
    main = [loss, Series("accuracy", title, steps, accuracy, True, percent, chance)]
    tasks = tasks_of(pretext) if pretext else ()
    chances: dict[str, float] = {task.name: 100 * task.chance for task in tasks}
    starved = [100 * r.starvation for r in records]
    minor = [
        *(
            Series(
                f"accuracy-{name}",
                f"Accuracy: {name}",
                steps,
                [100 * record.accuracy_of[name] for record in records],
                from_zero=True,
                unit=percent,
                rule=chances.get(name),
            )
            for name in names
        ),
        Series("lr", "Learning rate", steps, [r.lr for r in records], from_zero=True),
        Series("speed", "Images/s", steps, [r.images_per_s for r in records], from_zero=True),
        Series("starvation", "Waiting for the loader", steps, starved, True, percent),
    ]
    return [
        *(line_chart(series, width=440, height=220) for series in main),
        *(line_chart(series, width=320, height=170) for series in minor),
    ]


def several_tasks(records: Sequence[Record]) -> tuple[str, ...]:
    """Name the tasks that every record knows the accuracy of; none where there is one."""
    names = tuple(records[-1].accuracy_of) if records else ()
    known = all(set(names) <= set(record.accuracy_of) for record in records)
    return names if len(names) > 1 and known else ()


def _blind(pretext: PretextConfig | None) -> float | None:
    """Loss of a blind guess: of several tasks, their weighted sum."""
    if pretext is None:
        return None
    pairs = zip(tasks_of(pretext), weights_of(pretext), strict=True)
    return sum(-weight * math.log(task.chance) for task, weight in pairs)
