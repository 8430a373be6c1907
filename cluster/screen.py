"""What a person sees: a bar for every long stage, tables, and a clear last screen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LONG_S = 60.0


class Bar:
    """One line of progress; in a log without a terminal, one for every tenth and every minute."""

    def __init__(self, progress: Progress, console: Console, name: str) -> None:
        self._progress, self._console, self._name = progress, console, name
        self._task: TaskID = progress.add_task(name, total=None, note="starting")
        self._tenth, self._said = -1, time.monotonic()

    def update(self, done: float, total: float | None, note: str = "") -> None:
        """Show how much is done, of a total where it is known, and a short note of what."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        tenth, now = int(10 * done / total) if total else 0, time.monotonic()
        is_due = tenth != self._tenth or now - self._said >= _LONG_S
        if not self._console.is_terminal and is_due:
            self._tenth, self._said = tenth, now
            self._console.print(f"{self._name}: {10 * tenth}%  {note}", highlight=False)


class _Left(TimeRemainingColumn):
    """The time that is left, once it is known."""

    def render(self, task: Task) -> Text:
        left = super().render(task)
        return left.append(" left") if left.plain else left


class _Lines(Progress):
    """A bar, and below it what is being done: side by side 80 columns would cut both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", no_wrap=True, overflow="ellipsis")


@contextmanager
def bar(console: Console, name: str, *, counts: bool) -> Iterator[Bar]:
    """Show a bar while the block runs; `counts` shows done and total beside it."""
    columns = [
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn()] if counts else [TextColumn("{task.percentage:>3.0f}%")]),
        TimeElapsedColumn(),
        _Left(compact=True),
    ]
    with _Lines(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, console, name)
