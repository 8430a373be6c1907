"""Extraction of features beside its two halves and a torchvision loop, in turn."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, get_args

from pipeline.bench.measure import Stretch, speeds
from pipeline.bench.process import Process, running
from pipeline.bench.table import Row, ratio
from pipeline.config import ConfigError
from training.bench.work import ExtractionWork
from training.bench.worker import Name

Step = Callable[[str], None]
"""Called with what is done next."""

_HOUR = 3600.0  # Seconds that all images may take, where a round ends by itself.
TITLES: dict[Name, str] = {
    "tessera": "Tessera: loader, forward pass, pooling",
    "loader": "its loader alone",
    "forward": "its forward pass alone, with pooling",
    "torchvision": "torchvision: DataLoader, Pillow, hooks",
}


@dataclass(frozen=True, slots=True)
class Turns:
    """How often and how long each contender runs."""

    rounds: int
    warm: float
    """Seconds before the clock starts, at least; three batches in any case."""
    seconds: float
    """Measured in each round."""


@dataclass(slots=True)
class _Standing:
    name: Name
    process: Process
    rounds: list[Stretch] = field(default_factory=list)


def hold(work: ExtractionWork, turns: Turns, kept: Path, step: Step) -> list[Row]:
    """Measure the contenders in turn; then let the torchvision loop keep its features in a folder.

    Raises:
        ConfigError: A contender failed, say at an image that only Pillow refuses.
    """
    with ExitStack() as stack:
        standings = [_Standing(n, _start(stack, n, work)) for n in get_args(Name)]
        for standing in standings:
            _require(standing.name, standing.process.read())
        for number in range(1, turns.rounds + 1):
            for standing in standings:
                step(f"round {number} of {turns.rounds}: {TITLES[standing.name]}")
                command = {"warm": turns.warm, "seconds": turns.seconds}
                answer = _require(standing.name, standing.process.ask(command))
                standing.rounds.append(Stretch(**answer))
        step("features of the torchvision loop")
        loop = next(one.process for one in standings if one.name == "torchvision")
        _require("torchvision", loop.ask({"keep": str(kept)}, patience=_HOUR))
    return [_row(standing) for standing in standings]


def bound(rows: Sequence[Row]) -> dict[str, Any]:
    """Say how fast the extraction is, beside what holds it up.

    Where loader and forward pass share the cores, they can not both have them: no more images a
    second can be had than `shared_cores_images_per_s`, those of the two after each other. Ratios
    per CPU second are there, too: other programs disturb the clock, and not these.
    """
    named = {row["name"]: row for row in rows}
    ours, loader, forward = named["tessera"], named["loader"], named["forward"]
    least = min((loader, forward), key=lambda row: row["images_per_s"])
    halves = zip(loader["rounds"], forward["rounds"], strict=True)
    shared = [1 / (1 / one + 1 / other) for one, other in halves]
    return {
        "extraction_images_per_s": ours["images_per_s"],
        "loader_images_per_s": loader["images_per_s"],
        "forward_images_per_s": forward["images_per_s"],
        "torchvision_images_per_s": named["torchvision"]["images_per_s"],
        "shared_cores_images_per_s": median(shared),
        "bound_by": least["name"],
        "ratio_to_bound": ratio(ours, least),
        "ratio_to_shared_cores": ratio(ours, {"rounds": shared}),
        "ratio_to_torchvision": ratio(ours, named["torchvision"]),
        "ratio_to_bound_per_cpu_s": ours["images_per_cpu_s"] / least["images_per_cpu_s"],
        "ratio_to_torchvision_per_cpu_s": ours["images_per_cpu_s"]
        / named["torchvision"]["images_per_cpu_s"],
    }


def _start(stack: ExitStack, name: Name, work: ExtractionWork) -> Process:
    command = ["training.bench.worker", name, json.dumps(asdict(work))]
    return stack.enter_context(running(command, name, Path(work.folder)))


def _require(name: Name, answer: dict[str, Any]) -> dict[str, Any]:
    if "failure" in answer:
        raise ConfigError(f"data does not go through {TITLES[name]}: {answer['failure']}")
    return answer


def _row(standing: _Standing) -> Row:
    return {
        "name": standing.name,
        "title": TITLES[standing.name],
        **speeds(standing.rounds),
    }
