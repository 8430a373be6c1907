"""The process of one contestant that makes shards: lines of JSON say of what and where."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.bench.process import serve
from pipeline.bench.shard_peers import Maker, Name, load, open_maker
from pipeline.ingest.parts import close_sandbox


def main() -> None:
    """Serve until standard input ends; arguments: the contestant's name, and its core's number."""
    name: Any = sys.argv[1]
    core = int(sys.argv[2])
    serve(lambda commands: _on_one_core(core, answers(name, commands)))


def _on_one_core(number: int, answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Keep to a core from the second answer on: all start at once, on all of them."""
    yield next(answers)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    yield from answers


def answers(name: Name, commands: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Answer each command, {"files", "out"}; the first answer is for the start.

    An answer has the number of images, seconds by the clock, those of the processors, and the
    variant; or a failure.
    """
    load(name)
    yield {}
    opened: dict[str, Maker] = {}
    try:
        for line in commands:
            command = json.loads(line)
            yield _answer(name, command, opened)
    finally:
        close_sandbox()


def _answer(name: Name, command: dict[str, Any], opened: dict[str, Maker]) -> dict[str, Any]:
    files, out = command["files"], Path(command["out"])
    try:
        if files not in opened:
            opened[files] = open_maker(name, Path(files))
        maker = opened[files]
        cpu, start = cpu_seconds(), time.perf_counter()
        maker.make(out)
        seconds = time.perf_counter() - start
        used = cpu_seconds() - cpu
    except ImportError as error:
        return {"failure": f"not installed: {error}; pip install -e '.[bench]'"}
    except Exception as error:  # Whatever a peer raises becomes its row in the table.
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return {"failure": f"failed: {type(error).__name__}: {first_line}"}
    about = {"images": maker.images, "seconds": seconds, "cpu_seconds": used}
    return {**about, "variant": maker.variant}


def cpu_seconds() -> float:
    """Sum user and system time of this process and its children, running or waited for."""
    own, times = os.getpid(), os.times()
    total = time.process_time() + times.children_user + times.children_system
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == own:
                # The clock of another process, see clock_getcpuclockid(3): finer than /proc's.
                total += time.clock_gettime(~int(stat.parent.name) << 3 | 2)
        except OSError:  # Ended between the listing and the reading.
            continue
    return total


if __name__ == "__main__":
    main()
