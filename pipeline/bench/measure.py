"""Images and CPU seconds of a stretch of batches."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.bench.work import Batches, Variants

_WARM_BATCHES = 3
_TRIES = 2
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a contender did in one round."""

    images: int
    seconds: float
    """By the clock."""
    cpu_seconds: float
    """User and system, of all its processes."""

    @property
    def images_per_s(self) -> float:
        """By the clock."""
        return self.images / self.seconds

    @property
    def images_per_cpu_s(self) -> float:
        """By the processors' time."""
        return self.images / max(self.cpu_seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The fastest setting of a contender."""

    setting: str
    batches: Batches


def speeds(rounds: Sequence[Stretch]) -> dict[str, Any]:
    """Describe rounds: medians, range, and all speeds by the clock; None where there is none."""
    rates = [one.images_per_s for one in rounds]
    return {
        "images_per_s": median(rates) if rates else None,
        "min": min(rates, default=None),
        "max": max(rates, default=None),
        "images_per_cpu_s": median(one.images_per_cpu_s for one in rounds) if rates else None,
        "rounds": rates,
    }


def run(batches: Batches, *, warm: float, seconds: float) -> Stretch:
    """Take batches: first `warm` seconds unmeasured, then `seconds` measured.

    Warming drains what workers had ready, so that only work inside the stretch is counted.
    """
    begin, taken = time.perf_counter(), 0
    while taken < _WARM_BATCHES or time.perf_counter() - begin < warm:
        next(batches)
        taken += 1
    images, cpu, start = 0, cpu_seconds(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not images:
        images += len(next(batches))
    return Stretch(images, now - start, cpu_seconds() - cpu)


def choose(variants: Variants, seconds: float) -> Chosen:
    """Try every variant twice, in turn, for `seconds`, and open the fastest.

    The better of two tries counts: other programs can only slow a contender.

    Raises:
        Exception: No variant runs; that of the last one.
    """
    rates: dict[str, float] = {}
    failed: Exception | None = None
    for setting in [*variants] * _TRIES if len(variants) > 1 else []:
        batches = variants[setting]()
        try:
            rate = run(batches, warm=seconds / 2, seconds=seconds).images_per_s
            rates[setting] = max(rate, rates.get(setting, 0.0))
        except Exception as error:  # One setting may fail where another runs.
            failed = error
        finally:
            batches.close()
    if failed is not None and not rates:
        raise failed
    best = max(rates, key=rates.__getitem__) if rates else next(iter(variants))
    return Chosen(best, variants[best]())


def cpu_seconds() -> float:
    """Sum user and system time over all processes of this process group, dead children included."""
    group, own, ticks = os.getpgrp(), os.getpid(), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # Ended between the listing and the reading.
            continue
        if int(fields[2]) == group:
            # utime and stime; of the children that ended and were waited for, only our own.
            ticks += int(fields[11]) + int(fields[12])
            if int(stat.parent.name) == own:
                ticks += int(fields[13]) + int(fields[14])
    return ticks / _TICKS
