"""The terminal: arguments that commands share, bars of progress, errors as one line."""

import errno
import os
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


def require_file(path: Path | None, *, name: str) -> Path | None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        ConfigError: It is a folder, or is not in a folder that can be written.
    """
    if path is None:
        return None
    try:
        if path.is_dir():
            raise ConfigError(f"{name} (={path}) is a folder; give the name of a file.")
        parent = path.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{name} (={path}) is not in a folder that exists and can be written; make the "
                "folder or choose another one."
            )
        path.exists()  # A loop of links.
    except OSError as error:
        raise ConfigError(f"{name} (={path}) cannot be written: {error.strerror}.") from None
    return path


def _require_json(path: Path | None) -> Path | None:
    return require_file(path, name="json")


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
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_require_json,
        help="Also write the result as JSON.",
    ),
]

_LONG_S = 60.0
_BROKEN = (errno.EIO, errno.ESTALE, errno.EREMOTEIO)
_ADVICE = {
    errno.ENOSPC: "; free some space or choose another disk",
    errno.EDQUOT: "; free some space or choose another disk",
    errno.EFBIG: "; raise the limit on file sizes (ulimit -f) or choose another disk",
    errno.EROFS: "; choose a folder that can be written",
    errno.EACCES: "; choose one that this user may use",
    errno.EPERM: "; choose one that this user may use",
    errno.ENOENT: "; give a path that exists",
    errno.ENOTDIR: "; a part of the path is a file, give a folder",
    errno.EISDIR: "; give a file",
    errno.EEXIST: "; choose another name",
    errno.ELOOP: "; give a path that does not go in circles",
}


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

    Exit codes: 2 for what can be fixed where the command is called (input, paths, a full disk), 1
    for damage, network and a run that diverged, 75 for a pretraining that was asked to stop and can
    be resumed, 130 for Ctrl-C.
    """
    try:
        yield
    except typer.Exit:  # A RuntimeError, too.
        raise
    except KeyboardInterrupt:
        _end(
            "stopped. What was finished is intact; the same command continues from there "
            "(with --resume, if it has that option).",
            130,
        )
    except Exception as error:
        found = _explained(error)
        if found is None:
            raise
        _end(*found)


def _explained(error: Exception) -> tuple[str, int] | None:
    """Return the line and the exit code of an error that is no mistake of ours."""
    match error:
        case ConfigError():
            return str(error), 2
        case IncompleteError():
            return str(error), 1
        case ConnectionError() | TimeoutError():
            return f"{error.filename or 'network'}: {error.strerror or error}.", 1
        case OSError():
            return _about_file(error), 1 if error.errno in _BROKEN else 2
        case UnicodeDecodeError():
            return f"input is not UTF-8: {error}; give a text file.", 2
        case RuntimeError() if str(error).startswith("Symlink loop"):  # Of Path.resolve().
            return f"{error}; give a path that does not go in circles.", 2
    code = _code(error) if isinstance(error, RuntimeError) else None
    return None if code is None else (str(error), code)


def _about_file(error: OSError) -> str:
    """Name the file, what is wrong, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "")
    what = str(error.filename) if error.filename else "input or output"
    return " ".join(f"{what}: {error.strerror or error}{advice}.".split())


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
