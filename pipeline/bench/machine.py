"""What numbers depend on: processor, versions, date, commit, command."""

import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

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
