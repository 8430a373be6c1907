"""The memory of a process, as Linux counts it."""

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

_LOOK_S = 0.02


def memory_mib(pid: int, what: Literal["RssAnon", "VmHWM"]) -> float:
    """Read how much memory a process takes, MiB.

    Args:
        pid: Its number.
        what: RssAnon is its own at this moment, with no file behind it; VmHWM is the most it had in
            use so far, mapped files included. (getrusage's is that of the parent where that is
            more.)

    Raises:
        OSError: There is no such process.
        StopIteration: It has just ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith(f"{what}:")).split()[1]
    return int(kib) / 1024


def watch(command: Sequence[str], scratch: Path, folder: Path) -> tuple[int, float]:
    """Run a command in `folder`, with its output in the files stdout and stderr of `scratch`.

    Returns:
        Its exit code, and the most memory of its own that was seen, MiB.
    """
    most = 0.0
    with (
        (scratch / "stdout").open("wb") as out,
        (scratch / "stderr").open("wb") as err,
        subprocess.Popen(command, cwd=folder, stdout=out, stderr=err) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError, StopIteration):  # It ends just now.
                    most = max(most, memory_mib(process.pid, "RssAnon"))
                time.sleep(_LOOK_S)
        finally:
            process.kill()
    return process.returncode, most
