"""Processes that do what lines of JSON tell them, and are stopped in between."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

_ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # Seconds that a start, a choice of settings or a round may take beyond its own.
_FAREWELL = 5.0
_PR_SET_PDEATHSIG = 1


class Process:
    """A contender's process, running only while it is asked."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self._popen, self._log = popen, log

    def ask(self, command: dict[str, Any], patience: float = _PATIENCE) -> dict[str, Any]:
        """Let the process do something and stop it again; `patience` as that of `read`."""
        self.tell(command)
        answer = self.read(patience)
        self.signal(signal.SIGSTOP)
        return answer

    def tell(self, command: dict[str, Any]) -> None:
        """Let the process do something; `read` waits for its answer."""
        self.signal(signal.SIGCONT)
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # It has ended; the answer will say so.
            self._popen.stdin.write(json.dumps(command).encode() + b"\n")
            self._popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:  # Not yet a group of its own, or ended.
            self._popen.send_signal(number)

    def dismiss(self) -> None:
        """Let the process end by itself, for what its libraries hold in /dev/shm."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process and all that it started."""
        try:
            self.dismiss()
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_FAREWELL)
        finally:
            self.signal(signal.SIGKILL)
            self._popen.wait()
            assert self._popen.stdout is not None
            self._popen.stdout.close()

    def read(self, patience: float = _PATIENCE) -> dict[str, Any]:
        """Wait for an answer; where none comes within `patience` seconds, it is a failure."""
        assert self._popen.stdout is not None
        ready, _, _ = select.select([self._popen.stdout], [], [], patience)
        if not ready:
            return {"failure": f"failed: no answer within {patience:.0f} s"}
        line = self._popen.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else self._dead()
        return answer

    def _dead(self) -> dict[str, Any]:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "nothing in its log"
        return {"failure": f"failed: its process ended (exit code {self._popen.wait()}): {last}"}


@contextmanager
def running(command: Sequence[str], name: str, scratch: Path) -> Iterator[Process]:
    """Start a process of its own, and end it with all that it started.

    Args:
        command: A module, and its arguments.
        name: For its log.
        scratch: Folder of its log.
    """
    file, log_name = tempfile.mkstemp(".log", f"{name}-", scratch)
    os.close(file)
    log = Path(log_name)
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
    try:
        yield Process(popen, log)
    finally:
        Process(popen, log).end()


def serve(answers: Callable[[TextIO], Iterable[dict[str, Any]]]) -> None:
    """Be such a process: answer the lines of standard input until it ends."""
    os.setpgrp()  # The parent stops the whole group while others are measured.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Stopped, it could not end itself.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print; only replies go to the parent.
    for answer in answers(sys.stdin):
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
