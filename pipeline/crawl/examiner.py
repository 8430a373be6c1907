"""The gate in a process of its own: a decoder that crashes or hangs costs one image, no more."""

import contextlib
import json
import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.examiner_child import HEADER, READY, ROOM
from pipeline.crawl.formats import sniff
from pipeline.crawl.item import Judged, Reason
from pipeline.crawl.judge import hash_content, judge
from pipeline.crawl.judged_bytes import judged_from_bytes

_TRIES = 2
_START_S = 120.0
"""Time for a child to load its libraries; many start at once, on machines that are busy."""
_END_S = 1.0
_MAX_ANSWER_BYTES = 2**30


class Examiner:
    """Judges images in one child process, which is started again when it dies or hangs."""

    def __init__(
        self, config: ShardConfig, judge: Callable[[bytes, ShardConfig], Judged] = judge
    ) -> None:
        """Start the child; the first `examine` waits until it is ready.

        Args:
            config: Limits and rules.
            judge: A function of a module that the child can import.
        """
        self._config = config
        self._setup = json.dumps(
            {
                "config": config.model_dump(mode="json"),
                "judge": f"{judge.__module__}:{judge.__qualname__}",
            }
        ).encode()
        self._child: _Child | None = _Child(self._setup)

    @property
    def pid(self) -> int | None:
        """Process id of the child; None where none runs."""
        return None if self._child is None else self._child.pid

    def examine(self, data: bytes) -> Judged:
        """Judge the bytes of an input as `judge` does.

        An image that ends the child is tried again in a new one, once; one that takes longer than
        `max_seconds` is not.

        Raises:
            RuntimeError: No child can be started.
        """
        if len(data) > self._config.max_bytes:
            return Judged("quarantined", "too_big")
        for _ in range(_TRIES):
            if self._child is None:
                self._child = _Child(self._setup)
            self._child.wait_until_ready()
            try:
                return judged_from_bytes(self._child.ask(data, self._config.max_seconds), data)
            except TimeoutError:
                self._stop()
                return _quarantined(data, "timeout")
            except (EOFError, ValueError):
                self._stop()
            except BaseException:  # Ctrl-C: the answer that is still to come is of no question.
                self._stop()
                raise
        return _quarantined(data, "decoder_crash")

    def close(self) -> None:
        """End the child; may be called again."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


class _Child:
    """A running `examiner_child`, and the pipes to it."""

    def __init__(self, setup: bytes) -> None:
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        # One image at a time is decoded, by one thread.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        shared = os.memfd_create("image")
        os.truncate(shared, ROOM)
        self._shared = mmap.mmap(shared, ROOM)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.crawl.examiner_child", str(shared)],
            pass_fds=[shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **threads, "PYTHONPATH": paths},
            start_new_session=True,  # A Ctrl-C at the terminal does not reach it.
        )
        os.close(shared)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
        self._setup: bytes | None = setup

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        if self._setup is None:
            return
        try:
            if self.ask(self._setup, _START_S) != READY:
                raise EOFError
        except (EOFError, TimeoutError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)  # Its exit status is better known than that of a kill.
            self.stop()
            raise RuntimeError(
                f"the process that decodes images did not start (exit status "
                f"{self._process.returncode}); its own message stands above."
            ) from None
        self._setup = None

    def ask(self, message: bytes, seconds: float) -> bytes:
        """Send a message and wait for the answer.

        Raises:
            TimeoutError: It took longer than `seconds`.
            EOFError: The child is gone, or its answer is none.
        """
        deadline = time.monotonic() + seconds
        if len(message) <= ROOM:
            self._shared[: len(message)] = message
            self._send(HEADER.pack(len(message), True), deadline)
        else:
            self._send(HEADER.pack(len(message), False), deadline)
            self._send(message, deadline)
        size, is_shared = HEADER.unpack(self._receive(HEADER.size, deadline))
        if size > (ROOM if is_shared else _MAX_ANSWER_BYTES):
            raise EOFError
        return self._shared[:size] if is_shared else self._receive(size, deadline)

    def stop(self) -> None:
        """End the process and wait for its end."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        self._shared.close()
        process.kill()
        process.wait()

    def _send(self, message: bytes, deadline: float) -> None:
        rest = memoryview(message)
        while rest:
            _wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None

    def _receive(self, size: int, deadline: float) -> bytes:
        parts, missing = [], size
        while missing:
            _wait(self._from, select.POLLIN, deadline)
            part = os.read(self._from, missing)
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


def _quarantined(data: bytes, reason: Reason) -> Judged:
    return Judged("quarantined", reason, hash_content(data), sniff(data)[0])
