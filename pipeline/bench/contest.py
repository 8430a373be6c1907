"""Contests: contenders in turn, round by round; the idle ones are stopped and use no processor."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from pipeline.bench.worker import Stretch

Progress = Callable[[float, float, str], None]
"""Called with steps done, steps in all, and what is being done."""
Show = Callable[[RenderableType], None]
"""Called with each table as it is ready, and with the last line."""
Row = dict[str, Any]
"""A contender's row of a table and of the JSON."""

_ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # Seconds that a start, a choice of settings or a round may take beyond its own.
_FAREWELL = 5.0
_USED = 0.85  # Share of the cores that a contender uses which nothing holds up.
_RERUN = "Compare the column per CPU s, or run again on an idle machine."


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a contest takes."""

    rounds: int
    seconds: float
    """Measured, of each contender in each round."""
    warm: float
    """Seconds before the clock starts, at least; three batches in any case."""
    choose: float = 0.0
    """Seconds for each setting that a contender may choose from."""


class Process:
    """A contender's process, running only while it is asked."""

    failure: str | None = None
    """Why it never became ready."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self._popen, self._log = popen, log

    def tell(self, command: dict[str, Any]) -> None:
        """Let the process carry out a command; `read` waits for its answer."""
        self.signal(signal.SIGCONT)
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # It has ended; the answer will say so.
            self._popen.stdin.write(json.dumps(command).encode() + b"\n")
            self._popen.stdin.flush()

    def read(self, patience: float = _PATIENCE) -> dict[str, Any]:
        """Wait for an answer; where none comes within `patience` seconds, it is a failure."""
        assert self._popen.stdout is not None
        ready, _, _ = select.select([self._popen.stdout], [], [], patience)
        if not ready:
            return {"failure": f"failed: no answer within {patience:.0f} s"}
        line = self._popen.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else self._dead()
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:  # Not yet a group of its own, or ended.
            self._popen.send_signal(number)

    def dismiss(self) -> None:
        """Let the process end by itself, for what its libraries hold in /dev/shm."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process and all that it started."""
        try:
            self.dismiss()
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_FAREWELL)
        finally:
            self.signal(signal.SIGKILL)
            self._popen.wait()
            assert self._popen.stdout is not None
            self._popen.stdout.close()

    def _dead(self) -> dict[str, Any]:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "nothing in its log"
        return {"failure": f"failed: its process ended (exit code {self._popen.wait()}): {last}"}


@contextmanager
def running(target: str, job: Mapping[str, Any], scratch: Path) -> Iterator[Process]:
    """Start a worker, and end it with all that it started.

    Args:
        target: MODULE:FUNCTION, see `pipeline.bench.worker`.
        job: Its arguments.
        scratch: Folder of its log.
    """
    file, log_name = tempfile.mkstemp(".log", f"{target.partition(':')[2]}-", scratch)
    log = Path(log_name)
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with os.fdopen(file, "wb") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", "pipeline.bench.worker", target, json.dumps(job, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
    try:
        yield (process := Process(popen, log))
    finally:
        process.end()


def start(
    stack: ExitStack, target: str, jobs: Sequence[Mapping[str, Any]], scratch: Path
) -> list[Process]:
    """Start workers at once and wait until all are ready; they end with the block of `stack`."""
    processes = [stack.enter_context(running(target, job, scratch)) for job in jobs]

    def dismiss() -> None:  # All at once, before each is waited for.
        for process in processes:
            process.dismiss()

    stack.callback(dismiss)
    for process in processes:
        process.failure = process.read().get("failure")
    return processes


@dataclass(slots=True)
class Standing:
    """A contender and its rounds."""

    name: str
    title: str
    processes: Sequence[Process] = ()
    """Those that take a turn together."""
    role: str = ""
    setting: str = ""
    """The one of its variants that runs."""
    mean: float | None = None
    """Mean of the pixels of its first batch."""
    failure: str | None = None
    """Why it has no numbers."""
    rounds: list[Stretch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.failure = next((p.failure for p in self.processes if p.failure), self.failure)

    def ask(self, *commands: dict[str, Any], patience: float = _PATIENCE) -> list[dict[str, Any]]:
        """Let its processes carry out a command each, at once, and stop them again.

        Returns:
            Their answers; none, and `failure` is set, where one failed.
        """
        for process, command in zip(self.processes, commands, strict=True):
            process.tell(command)
        answers = [process.read(patience) for process in self.processes]
        for process in self.processes:
            process.signal(signal.SIGSTOP)
        self.failure = next((one["failure"] for one in answers if "failure" in one), None)
        return answers if self.failure is None else []

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Add a round: what its processes did at the same time."""
        if answers:
            images, seconds, cpu_seconds = (
                [answer[name] for answer in answers]
                for name in ("images", "seconds", "cpu_seconds")
            )
            self.rounds.append(Stretch(sum(images), max(seconds), sum(cpu_seconds)))

    def speeds(self) -> Row:
        """Return medians, range and all rounds, images per second; None where it did not run."""
        ran = self.rounds if self.failure is None else []
        rates = [one.images_per_s for one in ran]
        return {
            "images_per_s": median(rates) if rates else None,
            "min": min(rates, default=None),
            "max": max(rates, default=None),
            "images_per_cpu_s": median(one.images_per_cpu_s for one in ran) if ran else None,
            "rounds": rates,
        }


class Steps:
    """Counts the turns of a bench for its bar of progress."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def __call__(self, what: str) -> None:
        """Begin the next turn."""
        self._done += 1
        self.within(what)

    def within(self, what: str) -> None:
        """Say what is being done in this turn, or before the first."""
        self._on_progress(max(self._done - 1, 0), self._total, what)

    def finish(self) -> None:
        """Fill the bar."""
        self._on_progress(self._total, self._total, "")


def take_turns(
    standings: Sequence[Standing],
    what: str,
    turn: Callable[[Standing], None],
    step: Callable[[str], None],
) -> None:
    """Give every contender that has not failed one turn; `step` hears of each before it."""
    for standing in standings:
        step(f"{what}: {standing.title}")
        if standing.failure is None:
            turn(standing)


def named(rows: Sequence[Row], name: str) -> Row | None:
    """Return the row of a contender, None where it takes no part."""
    return next((row for row in rows if row["name"] == name), None)


def ratio(row: Row | None, other: Row | None) -> float | None:
    """Divide two contenders' speeds, None where one did not run.

    The median of the ratios of the rounds, not the ratio of the medians: the two ran side by side
    in each round, so what slowed the machine slowed both.
    """
    if row is None or other is None or not row["rounds"] or not other["rounds"]:
        return None
    found: float = median(a / b for a, b in zip(row["rounds"], other["rounds"], strict=False))
    return found


def cpu_ratio(row: Row, other: Row) -> float | None:
    """Divide two contenders' medians per CPU second, None where one did not run."""
    if row["images_per_cpu_s"] is None or other["images_per_cpu_s"] is None:
        return None
    found: float = row["images_per_cpu_s"] / other["images_per_cpu_s"]
    return found


def last_line(found: Row, *phrases: Mapping[str, str]) -> str:
    """Say the headline in one line.

    Args:
        found: The headline.
        phrases: By key, a template of what is said where its value is known; the first mapping of
            which anything is known is used.
    """
    for texts in phrases:
        said = [text.format(**found) for key, text in texts.items() if found[key] is not None]
        if said:
            return f"ours {', '.join(said)}"
    return "ours did not run; see the tables"


def busy_note(cores_used: float | None, cores: int) -> str | None:
    """Warn where wall-clock times say more about other programs than about the contenders."""
    if cores_used is None or cores_used > _USED * cores:
        return None
    return (
        f"ours got {cores_used:.1f} of {cores} cores: other programs run here, or a thread waits. "
        f"{_RERUN}"
    )


def load_note(load: float, cores: int) -> str | None:
    """Warn where other programs ran before the bench did."""
    if load <= cores / 2:
        return None
    return f"the load of this machine was {load:.1f} before: other programs run here. {_RERUN}"


def contest_table(title: str, rows: Sequence[Row], ratios: Mapping[str, str]) -> Table:
    """Show every contender; those that did not run say why.

    Args:
        title: Its title.
        rows: In the order shown.
        ratios: Header of each further column, and the key of its ratio.
    """
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("contender")
    for header in ("images/s", "min..max", "per CPU s", *ratios):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        ours = row["name"].startswith(("tessera", "two"))
        style = "bold" if ours else "dim" if row.get("role") == "limit" else ""
        title = row["title"] + (f" ({row['variant']})" if row.get("variant") else "")
        if row["images_per_s"] is None:
            table.add_row(f"{title}: {escape(row['failure'])}", style=style)
            continue
        values = (row[key] for key in ratios.values())
        table.add_row(
            title,
            f"{row['images_per_s']:,.0f}",
            f"{row['min']:,.0f}..{row['max']:,.0f}",
            f"{row['images_per_cpu_s']:,.0f}",
            *("-" if value is None else f"{value:.2f}" for value in values),
            style=style,
        )
    return table


def measure_table(name: str, measured: Row) -> Table:
    """Show a further measure, one value a line."""
    table = Table(title=name.replace("_", " "), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in _flat(measured):
        table.add_row(key, value if isinstance(value, str) else f"{value:,.4g}")
    return table


def _flat(measured: Row, prefix: str = "") -> list[tuple[str, Any]]:
    """Spell out nested sections: shards 10 images_per_s."""
    found: list[tuple[str, Any]] = []
    for key, value in measured.items():
        nested = isinstance(value, dict)
        found += _flat(value, f"{prefix}{key} ") if nested else [(f"{prefix}{key}", value)]
    return found
