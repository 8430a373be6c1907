"""Ray on several nodes, as `ray start` makes it, all on this machine; a node can be lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from command import without_ray

_RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
ENVIRONMENT = without_ray(RAY_AUTH_MODE="disabled")


@dataclass(frozen=True)
class Head:
    address: str
    """For drivers and nodes."""
    dashboard: str
    """For jobs."""


@contextmanager
def started_head(num_cpus: int) -> Iterator[Head]:
    """Start a head with a dashboard."""
    port, dashboard = free_port(), free_port()
    # A folder of its own, short: Ray puts sockets there, whose paths may have 107 bytes.
    folder = Path(f"/tmp/ray-{os.getpid()}-{port}")
    options = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}")
    try:
        with _started(*options, f"--num-cpus={num_cpus}"):
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        shutil.rmtree(folder)


@contextmanager
def started_node(head: Head) -> Iterator[subprocess.Popen[str]]:
    """Start a node of one CPU beside the head."""
    with _started(f"--address={head.address}", "--num-cpus=1") as process:
        yield process


@contextmanager
def _started(*options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [
            *_RAY,
            *options,
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=100000000",
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            break
    assert process.poll() is None, "".join(said)
    try:
        yield process
    finally:
        lose(process)  # A graceful end takes half a minute.
        process.communicate(timeout=60)


def lose(node: subprocess.Popen[str]) -> None:
    """Kill all processes of a node at once, as a power cut does."""
    for pid in family(node.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def family(pid: int) -> set[int]:
    """A process, its children and theirs."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
