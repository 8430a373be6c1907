"""What a person sees: a bar for every long stage, tables, and a clear last screen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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


@contextmanager
def bar(console: Console, name: str, *, counts: bool) -> Iterator[Bar]:
    """Show a bar while the block runs; `counts` shows done and total beside it."""
    columns = [
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn()] if counts else [TextColumn("{task.percentage:>3.0f}%")]),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, console, name)
