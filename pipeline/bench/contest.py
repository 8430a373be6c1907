"""Contenders in turn, round by round; the idle ones are stopped and use no processor."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median

from pipeline.bench.contenders import Contender
from pipeline.bench.measure import Stretch
from pipeline.bench.process import Process, running
from pipeline.bench.work import LoaderWork

Progress = Callable[[float, float, str], None]
"""Called with steps done, steps in all, and what is being done."""

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
    work: LoaderWork


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
        processes = [stack.enter_context(_start(one)) for one in entrants]
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


def _take_turn(standing: Standing, process: Process, effort: Effort) -> None:
    """Let a contender run once: first to choose its setting, then to be measured."""
    if not standing.setting:
        answer = process.ask({"seconds": effort.choose})
        standing.setting, standing.mean = answer.get("setting", ""), answer.get("mean")
    else:
        answer = process.ask({"warm": effort.warm, "seconds": effort.seconds})
        if "failure" not in answer:
            standing.rounds.append(Stretch(**answer))
    standing.failure = answer.get("failure")


def _start(entrant: Entrant) -> AbstractContextManager[Process]:
    """Start an entrant's process; it ends with the block."""
    job = json.dumps({"name": entrant.contender.name, "work": asdict(entrant.work)}, default=str)
    command = ["pipeline.bench.worker", job]
    return running(command, entrant.contender.name, entrant.work.scratch)
