"""The memory of a process, as Linux counts it."""

from pathlib import Path
from typing import Literal


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
