"""The gate in a process of its own: a decoder that crashes or hangs costs one image, no more."""

import contextlib
import functools
import json
import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from typing_extensions import Self

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.examiner_messages import (
    ANSWERS,
    COUNT,
    MESSAGES,
    READY,
    SHARED_BYTES,
    lay,
    pick_up,
)
from pipeline.crawl.formats import sniff
from pipeline.crawl.item import Judged, Reason
from pipeline.crawl.judge import hash_content, judge
from pipeline.crawl.judged_bytes import judged_from_bytes

_START_S = 120.0
"""Time for a child to load its libraries; many start at once, on machines that are busy."""
_END_S = 1.0
_LOOK_S = 0.1
"""Time between looks at how far a child is that does not answer yet."""
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

    def examine(self, images: Sequence[bytes]) -> list[Judged]:
        """Judge the bytes of inputs as `judge` does, all in one exchange with the child.

        An image that ends the child is tried again in a new one, once; one that takes longer than
        `max_seconds` is not.

        Raises:
            RuntimeError: No child can be started.
        """
        verdicts = iter(self._examine([data for data in images if self._fits(data)]))
        return [
            next(verdicts) if self._fits(data) else Judged("quarantined", "too_big")
            for data in images
        ]

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

    def _fits(self, data: bytes) -> bool:
        return len(data) <= self._config.max_bytes

    def _examine(self, images: Sequence[bytes]) -> list[Judged]:
        if not images:
            return []
        try:
            return self._ask(images)
        except _StoppedError as stop:
            at, verdict = stop.at, _quarantined(images[stop.at], stop.reason)
        if verdict.reason == "decoder_crash":
            try:
                (verdict,) = self._ask([images[at]])
            except _StoppedError as stop:
                verdict = _quarantined(images[at], stop.reason)
        return [*self._examine(images[:at]), verdict, *self._examine(images[at + 1 :])]

    def _ask(self, images: Sequence[bytes]) -> list[Judged]:
        if self._child is None:
            self._child = _Child(self._setup)
        child = self._child
        child.wait_until_ready()
        verdicts: list[Judged] = []
        try:
            for data, answer in zip(
                images, child.ask(images, self._config.max_seconds), strict=True
            ):
                verdicts.append(judged_from_bytes(answer, data))
        except ValueError:
            self._stop()
            raise _StoppedError(len(verdicts), "decoder_crash") from None
        except (TimeoutError, EOFError) as error:
            at = min(child.num_done(), len(images) - 1)
            self._stop()
            is_late = isinstance(error, TimeoutError)
            raise _StoppedError(at, "timeout" if is_late else "decoder_crash") from None
        except BaseException:  # Ctrl-C: the answers that are still to come are of no question.
            self._stop()
            raise
        return verdicts

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


class _StoppedError(Exception):
    """The child had to be ended, or ended."""

    def __init__(self, at: int, reason: Literal["timeout", "decoder_crash"]) -> None:
        super().__init__(reason)
        self.at, self.reason = at, reason  # The image that it was at.


class _Child:
    """A running `examiner_child`, and the pipes to it."""

    def __init__(self, setup: bytes) -> None:
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        # One image at a time is decoded, by one thread.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        shared = os.memfd_create("image")
        os.truncate(shared, SHARED_BYTES)
        self._shared = mmap.mmap(shared, SHARED_BYTES)
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
            if self.ask([self._setup], _START_S) != [READY]:
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

    def ask(self, messages: Sequence[bytes], seconds: float) -> list[bytes]:
        """Send messages and wait for the answers.

        Raises:
            TimeoutError: One took longer than `seconds`.
            EOFError: The child is gone, or its answers are none.
        """
        COUNT.pack_into(self._shared, 0, 0)
        number = len(messages)
        patience = _Patience(seconds, lambda: min(self.num_done(), number))
        through_pipe = lay(messages, self._shared, MESSAGES)
        for part in (COUNT.pack(number), *through_pipe):
            self._send(part, patience)
        receive = functools.partial(self._receive, patience=patience)
        return list(pick_up(number, self._shared, ANSWERS, receive))

    def num_done(self) -> int:
        """Ask how many messages of the last exchange the child has done."""
        return int(COUNT.unpack_from(self._shared)[0])

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

    def _send(self, message: bytes, patience: "_Patience") -> None:
        rest = memoryview(message)
        while rest:
            patience.wait(self._to, select.POLLOUT)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None

    def _receive(self, size: int, patience: "_Patience") -> bytes:
        if size > _MAX_ANSWER_BYTES:
            raise EOFError
        parts, missing = [], size
        while missing:
            patience.wait(self._from, select.POLLIN)
            part = os.read(self._from, missing)
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class _Patience:
    """Waits for a child as long as it goes on."""

    def __init__(self, seconds: float, progress: Callable[[], int]) -> None:
        self._seconds, self._progress = seconds, progress
        self._seen, self._deadline = 0, time.monotonic() + seconds

    def wait(self, pipe: int, event: int) -> None:
        """Wait until a pipe is ready; raises TimeoutError after `seconds` without progress."""
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(_LOOK_S * 1000):
            now, done = time.monotonic(), self._progress()
            if done > self._seen:
                self._seen, self._deadline = done, now + self._seconds
            elif now >= self._deadline:
                raise TimeoutError


def _quarantined(data: bytes, reason: Reason) -> Judged:
    return Judged("quarantined", reason, hash_content(data), sniff(data)[0])
