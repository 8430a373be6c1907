"""The terminal: arguments that commands share, bars of progress, errors as one line."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
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

from pipeline.config import ConfigError, parse, read_yaml

if TYPE_CHECKING:
    from training.run import RunConfig

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Replace keys of the config: train.max_minutes=5"
    ),
]
Manifest = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST", help="A folder of shards or the manifest in it, as a path or a URL."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue in a folder that is not empty.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")
]

_LONG_S = 60.0


class IncompleteError(RuntimeError):
    """Some parts of a stage failed; what was finished is kept."""


def load_run(config: Path, overrides: Sequence[str] | None) -> "RunConfig":
    """Read and check the config of a run.

    Raises:
        ConfigError: The file cannot be read, or breaks a law.
    """
    raw = read_yaml(config, overrides or ())
    from training.run import RunConfig  # Imports torch and DALI: a mistyped path need not wait.

    return parse(RunConfig, raw, str(config))


def say(console: Console, text: str) -> None:
    """Print a line as it is: unstyled, and not wrapped."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with one line on standard error where the user can act on the mistake.

    Exit codes: 2 for the input, 1 for damage, disk, network and a run that diverged, 75 for a
    pretraining that was asked to stop and can be resumed, 130 for Ctrl-C.
    """
    try:
        yield
    except typer.Exit:  # A RuntimeError, too.
        raise
    except ConfigError as error:
        _end(str(error), 2)
    except IncompleteError as error:
        _end(str(error), 1)
    except OSError as error:  # A full disk, a read-only folder, a file that vanished.
        _end(f"{error.filename or 'input or output'}: {error.strerror or error}.", 1)
    except RuntimeError as error:
        code = _code(error)
        if code is None:
            raise
        _end(str(error), code)
    except KeyboardInterrupt:
        _end(
            "stopped. What was finished is intact; the same command continues from there "
            "(with --resume, if it has that option).",
            130,
        )


def _code(error: RuntimeError) -> int | None:
    """Return the exit code for an error that one line explains, else None."""
    # Imported here: a refusal need not wait for aiohttp.
    from pipeline.remote.fetch import FetchError
    from pipeline.shards.damage import DamageError
    from pipeline.shards.publish import PublishError
    from training.faults import EXIT_STOPPED, DivergedError, StoppedError

    if isinstance(error, StoppedError):
        return EXIT_STOPPED
    return 1 if isinstance(error, DamageError | DivergedError | FetchError | PublishError) else None


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"tessera: {message}\n")
    sys.exit(code)


class Bar:
    """One line of progress; in a log without a terminal, one for every tenth and every minute."""

    def __init__(self, progress: Progress, console: Console, name: str) -> None:
        self._progress, self._console, self._name = progress, console, name
        self._task: TaskID = progress.add_task(name, total=None, note="starting")
        self._tenth, self._said = -1, time.monotonic()

    def update(self, done: float, total: float | None, note: str = "") -> None:
        """Show how much is done, of a total if it is known, and a short note."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        tenth, now = int(10 * done / total) if total else 0, time.monotonic()
        is_due = tenth != self._tenth or now - self._said >= _LONG_S
        if not self._console.is_terminal and is_due:
            self._tenth, self._said = tenth, now
            self._console.print(f"{self._name}: {10 * tenth}%  {note}", highlight=False)


class _Remaining(TimeRemainingColumn):
    """The remaining time, once it is known."""

    def render(self, task: Task) -> Text:
        left = super().render(task)
        return left.append(" left") if left.plain else left


class _Lines(Progress):
    """A bar with its note below: side by side, 80 columns would cut both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", no_wrap=True, overflow="ellipsis")


@contextmanager
def bar(console: Console, name: str, *, counts: bool) -> Iterator[Bar]:
    """Show a bar while the block runs; `counts` adds done and total."""
    columns = [
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn()] if counts else [TextColumn("{task.percentage:>3.0f}%")]),
        TimeElapsedColumn(),
        _Remaining(compact=True),
    ]
    with _Lines(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, console, name)
