"""Contenders in turn, round by round; the idle ones are stopped and use no processor."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.bench.contenders import Contender
from pipeline.bench.measure import Stretch
from pipeline.bench.work import Work

Progress = Callable[[float, float, str], None]
"""Called with steps done, steps in all, and what is being done."""

_ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # Seconds that a start, a choice of settings or a round may take beyond its own.
_FAREWELL = 5.0
_MEAN_BAND = 25.0  # Of 255: means of a batch of 64 photographs differ by 5 from draw to draw.


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a contest takes."""

    rounds: int
    seconds: float
    """Measured, of each contender in each round."""
    warm: float
    """Seconds before the clock starts."""
    choose: float
    """Seconds for each setting that a contender may choose from."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contender and what it does."""

    contender: Contender
    work: Work


@dataclass(slots=True)
class Standing:
    """An entrant and its rounds."""

    entrant: Entrant
    setting: str = ""
    mean: float | None = None
    """Of the pixels of its first batch."""
    failure: str | None = None
    """Why it has no numbers."""
    rounds: list[Stretch] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """Median over the rounds, by the clock."""
        return median(one.images_per_s for one in self.rounds)

    @property
    def images_per_cpu_s(self) -> float:
        """Median over the rounds, by the processors' time."""
        return median(one.images_per_cpu_s for one in self.rounds)


def hold(entrants: Sequence[Entrant], effort: Effort, on_progress: Progress) -> list[Standing]:
    """Measure entrants in turn.

    Returns:
        One standing for each entrant, in their order; each has rounds or a failure.
    """
    standings = [Standing(entrant) for entrant in entrants]
    total, done = (effort.rounds + 1) * len(entrants), 0
    on_progress(0, total, "starting")
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(one)) for one in entrants]
        for standing, process in zip(standings, processes, strict=True):
            standing.failure = process.read().get("failure")  # Ready when its imports are done.
        for number in range(effort.rounds + 1):
            for standing, process in zip(standings, processes, strict=True):
                what = f"round {number} of {effort.rounds}" if number else "choosing settings"
                on_progress(done, total, f"{what}: {standing.entrant.contender.title}")
                if standing.failure is None:
                    _take_turn(standing, process, effort)
                done += 1
            if number == 0:
                exclude_strangers(standings)
        for process in processes:
            process.dismiss()
    on_progress(total, total, "")
    return standings


def exclude_strangers(standings: Sequence[Standing]) -> None:
    """Let nobody win by showing other pictures: fail those whose mean is far from the median."""
    means = [standing.mean for standing in standings if standing.mean is not None]
    for standing in standings:
        if standing.mean is not None and abs(standing.mean - median(means)) > _MEAN_BAND:
            standing.failure = (
                f"failed: its pictures have a mean of {standing.mean:.0f}, those of the others "
                f"{median(means):.0f} of 255"
            )


def _take_turn(standing: Standing, process: "_Process", effort: Effort) -> None:
    """Let a contender run once: first to choose its setting, then to be measured."""
    if not standing.setting:
        answer = process.ask({"seconds": effort.choose})
        standing.setting, standing.mean = answer.get("setting", ""), answer.get("mean")
    else:
        answer = process.ask({"warm": effort.warm, "seconds": effort.seconds})
        if "failure" not in answer:
            standing.rounds.append(Stretch(**answer))
    standing.failure = answer.get("failure")


class _Process:
    """A contender's process, running only while it is asked."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self._popen, self._log = popen, log

    def ask(self, command: dict[str, float]) -> dict[str, Any]:
        """Let the process do something and stop it again."""
        self.signal(signal.SIGCONT)
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(command).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            return self._dead()
        answer = self.read()
        self.signal(signal.SIGSTOP)
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

    def read(self) -> dict[str, Any]:
        """Wait for an answer; where none comes, it is a failure."""
        assert self._popen.stdout is not None
        ready, _, _ = select.select([self._popen.stdout], [], [], _PATIENCE)
        if not ready:
            return {"failure": f"failed: no answer within {_PATIENCE:.0f} s"}
        line = self._popen.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else self._dead()
        return answer

    def _dead(self) -> dict[str, Any]:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "nothing in its log"
        return {"failure": f"failed: its process ended (exit code {self._popen.wait()}): {last}"}


@contextmanager
def _process(entrant: Entrant) -> Iterator[_Process]:
    """Start an entrant's process, and end it with all that it started."""
    job = {"name": entrant.contender.name, "work": asdict(entrant.work)}
    file, name = tempfile.mkstemp(".log", f"{entrant.contender.name}-", entrant.work.scratch)
    os.close(file)
    log = Path(name)
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", "pipeline.bench.worker", json.dumps(job, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
    try:
        yield _Process(popen, log)
    finally:
        _Process(popen, log).end()
