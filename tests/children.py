"""What this process has started and not yet seen end."""

import os
import threading
from pathlib import Path


def children():
    """The process ids of what this thread started; what other tests started may end meanwhile."""
    path = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    return set(path.read_text().split())
