"""The process of a contender: commands in, answers out, a line of JSON each.

`python -m pipeline.bench.worker MODULE:FUNCTION JOB` calls the function with the entries of JOB;
it must return a context manager of what answers commands. This module imports nothing heavy, so
that a contender's imports are its own.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_WARM_BATCHES = 3
_TRIES = 2

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""What a contender makes of a command."""
Batches = Generator[Any, None, None]
"""Arrays or tensors, batch first; never ends. Closing it ends its workers."""
Variants = dict[str, Callable[[], Batches]]
"""Settings a contender may choose from, by name; it runs with the fastest one."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a contender did in one round."""

    images: int
    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """User and system time of all its processes."""

    @property
    def images_per_s(self) -> float:
        """Images per second of wall-clock time."""
        return self.images / self.seconds

    @property
    def images_per_cpu_s(self) -> float:
        """Images per CPU second."""
        return self.images / max(self.cpu_seconds, 1e-9)


def main() -> None:
    """Serve one contender until standard input ends."""
    module, _, function = sys.argv[1].partition(":")
    job = json.loads(sys.argv[2])
    os.setpgrp()  # The parent stops the whole group while others are measured.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Stopped, it could not end itself.
    if "cores" in job:  # Before the imports: libraries size their pools by it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["cores"]])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print; only replies go to the parent.
    for answer in answers(lambda: getattr(import_module(module), function)(**job), sys.stdin):
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def answers(
    start: Callable[[], AbstractContextManager[Answer]], commands: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Answer each command; the first answer says that the contender is ready, or what failed."""
    try:
        with start() as answer:
            yield {}
            for line in commands:
                yield _attempt(partial(answer, json.loads(line)))
    except Exception as error:  # Whatever a peer raises becomes its row in the table.
        yield _failure(error)


def _attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return call()
    except Exception as error:  # Likewise.
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, ImportError):
        return {"failure": f"not installed: {error}; pip install -e '.[bench]'"}
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return {"failure": f"failed: {type(error).__name__}: {first_line}"}


def run(batches: Batches, *, warm: float, seconds: float) -> Stretch:
    """Take batches: first `warm` seconds unmeasured, then `seconds` measured.

    Warming up drains what workers had ready, so that only work inside the stretch is counted.
    """
    begin, taken = time.perf_counter(), 0
    while taken < _WARM_BATCHES or time.perf_counter() - begin < warm:
        next(batches)
        taken += 1
    images, cpu, start = 0, cpu_seconds(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not images:
        images += len(next(batches))
    return Stretch(images, now - start, cpu_seconds() - cpu)


def choose(variants: Variants, seconds: float) -> tuple[str, Batches]:
    """Try every variant twice, in turn, for `seconds`, and open the fastest.

    The better of two tries counts: other programs can only slow a contender.

    Returns:
        The name of the setting, and its batches.

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
    return best, variants[best]()


def cpu_seconds() -> float:
    """Sum user and system time of this process, its children, and its process group."""
    own, group = os.getpid(), os.getpgrp()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            pid = int(stat.parent.name)
            # Children may be in a session of their own, grandchildren are found by their group.
            if pid != own and (int(parent) == own or int(its_group) == group):
                # The clock of another process, see clock_getcpuclockid(3): finer than /proc's.
                total += time.clock_gettime(~pid << 3 | 2)
        except OSError:  # Ended between the listing and the reading.
            continue
    return total


if __name__ == "__main__":
    main()
