"""What numbers depend on: processor, versions, date, commit, command; and memory."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

_ROOT = Path(__file__).parents[2]
_SAMPLE_S = 0.02


def memory_mib(pid: int, what: Literal["RssAnon", "VmHWM"]) -> float:
    """Read the memory use of a process, MiB.

    Args:
        pid: Process id.
        what: RssAnon is its own at this moment, not backed by a file; VmHWM is its peak resident
            memory so far, mapped files included. (getrusage reports the parent's where that is
            higher.)

    Raises:
        OSError: There is no such process.
        StopIteration: It has just ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith(f"{what}:")).split()[1]
    return int(kib) / 1024


def watch(
    module: str, arguments: Sequence[object], scratch: Path, what: str
) -> tuple[dict[str, Any], float]:
    """Run a module that prints JSON as its last line, and watch its memory.

    Args:
        module: Name of the module; run from the folder of the project.
        arguments: Arguments of its command line.
        scratch: Folder that takes its output.
        what: Name of the measure, for the message.

    Returns:
        Its last line, and the peak of its own memory as sampled, MiB.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    most = 0.0
    with (
        (scratch / "stdout").open("wb") as out,
        (scratch / "stderr").open("wb") as err,
        subprocess.Popen(command, cwd=_ROOT, stdout=out, stderr=err) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError, StopIteration):  # It ends just now.
                    most = max(most, memory_mib(process.pid, "RssAnon"))
                time.sleep(_SAMPLE_S)
        finally:
            process.kill()
    if process.returncode:
        text = (scratch / "stderr").read_text()
        raise RuntimeError(f"{what} failed: {text.strip()[-300:]}")
    return json.loads((scratch / "stdout").read_text().splitlines()[-1]), most


_PACKAGES = (
    "tessera",
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "webdataset",
    "spdl-io",
    "litdata",
    "mosaicml-streaming",
    "simplejpeg",
    "img2dataset",
    "opencv-python-headless",
    "pillow",
    "scikit-learn",
    "numpy",
)


def describe_machine() -> dict[str, Any]:
    """Describe this machine, this program and this moment."""
    there = {one.name: one.version for one in distributions()}
    return {
        "hardware": {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "versions": {name: there[name] for name in _PACKAGES if name in there},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """Return the commit of this checkout, with a plus where files differ from it."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
