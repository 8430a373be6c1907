"""How a run ends before its time: asked to stop, or without a finite gradient."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request, resume me."""
STOP_FILE = "stop"
"""In a run's folder: a request to stop, for processes that get no signal (Ray's workers)."""
ENDED_FILE = "ended.json"
"""In a run's folder: how Ray's workers ended before their time."""
BAD_STEPS = "bad_steps.jsonl"
"""In a run's folder: a line for each step that was skipped."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 1.0
_AGAIN_SECONDS = 2.0  # Launchers repeat a Ctrl-C that the terminal has sent to all.

logger = logging.getLogger(__name__)

Asked = Callable[[], bool]


class StoppedError(RuntimeError):
    """The run was asked to stop, on every rank after the same step."""


class DivergedError(RuntimeError):
    """The run has no finite gradient or no finite weights, and going back did not help."""


@contextmanager
def stop_signals() -> Iterator[Asked]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a question that the loop asks.

    A second SIGINT, two seconds later or more, interrupts at once. Outside of the main thread,
    where Python allows no handlers, signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    owner, asked_at = os.getpid(), [0.0]

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # A child that was forked and has no handlers of its own.
            os._exit(128 + number)
        first, now = asked_at[0], time.monotonic()
        if number == signal.SIGINT and first and now - first > _AGAIN_SECONDS:
            raise KeyboardInterrupt
        asked_at[0] = first or now

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: asked_at[0] > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests(folder: Path) -> Iterator[Asked]:
    """The same, and a file STOP_FILE in `folder`, looked for once a second."""
    seen, looked = False, time.monotonic()
    with stop_signals() as signalled:

        def asked() -> bool:
            nonlocal seen, looked
            if not seen and time.monotonic() - looked >= _POLL_SECONDS:
                seen, looked = (folder / STOP_FILE).exists(), time.monotonic()
            return seen or signalled()

        yield asked


def log_bad_step(folder: Path, record: dict[str, Any]) -> None:
    """Append a line to BAD_STEPS; a disk that is full loses the line, not the run."""
    try:
        with (folder / BAD_STEPS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        logger.warning("%s was not written: %s", folder / BAD_STEPS, error.strerror)
