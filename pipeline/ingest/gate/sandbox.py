"""The gate in a process of its own: a decoder that crashes or hangs costs one image, no more."""

import contextlib
import dataclasses
import functools
import json
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from typing_extensions import Self

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.formats import sniff
from pipeline.ingest.gate.judge import hash_content, judge
from pipeline.ingest.item import Reason, Verdict

_SIZES = struct.Struct("<4I")  # JSON, stored image, near words, thumbnail.
_BLOBS = ("stored", "near_words", "thumbnail")
_PLAIN = [item.name for item in dataclasses.fields(Verdict) if item.name not in _BLOBS]


def judged_to_bytes(judged: Verdict, data: bytes) -> bytes:
    """Write the verdict on `data` so that `judged_from_bytes` reads an equal one.

    Where the input is stored as it came it is not written once more.
    """
    same = bool(data) and judged.stored == data
    facts = {name: getattr(judged, name) for name in _PLAIN}
    words = b"" if judged.near_words is None else judged.near_words.astype("<u8").tobytes()
    stored = b"" if same else judged.stored
    blobs = json.dumps([facts, same]).encode(), stored, words, judged.thumbnail
    return b"".join([_SIZES.pack(*map(len, blobs)), *blobs])


def judged_from_bytes(answer: bytes, data: bytes) -> Verdict:
    """Read the verdict on `data`.

    Raises:
        ValueError: It is none.
    """
    try:
        facts, stored, words, thumbnail = _split(answer)
        raw, same = json.loads(facts)
        raw["notes"] = tuple(raw["notes"])
        near = np.frombuffer(words, "<u8").astype(np.uint64) if words else None
        stored = data if same else stored
        return Verdict(**raw, stored=stored, near_words=near, thumbnail=thumbnail)
    except (TypeError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"no verdict: {error}") from None


def _split(data: bytes) -> list[bytes]:
    start, blobs = _SIZES.size, []
    for size in _SIZES.unpack_from(data):
        blobs.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"{len(data)} bytes hold no verdict of {start}.")
    return blobs


COUNT = struct.Struct("<I")
"""Begins an exchange: the number of messages, which is that of the answers."""
ROOM = 2**20
"""Bytes of messages in the shared memory, and as many of answers, one behind the other; what
exceeds them goes through the pipes, at three times the cost."""
MESSAGES, ANSWERS = COUNT.size, COUNT.size + ROOM
"""Where they begin; first stands how many messages of the exchange are done."""
SHARED_BYTES = ANSWERS + ROOM
READY = b"ready"
"""The first answer, once everything is loaded."""

_HEADER = struct.Struct("<I?")  # Of each: its length, and whether it lies in the shared memory.


def lay(messages: Iterable[bytes], shared: mmap.mmap, start: int) -> list[bytes]:
    """Lay messages into the shared memory from `start` on, while there is room.

    Returns:
        What goes through the pipe: the headers of all, and each message that had no room.
    """
    headers, others, place = [], [], start
    for message in messages:
        end = place + len(message)
        is_shared = end <= start + ROOM
        headers.append(_HEADER.pack(len(message), is_shared))
        if is_shared:
            shared[place:end] = message
            place = end
        else:
            others.append(message)
    return [b"".join(headers), *others]


def pick_up(
    number: int, shared: mmap.mmap, start: int, receive: Callable[[int], bytes]
) -> Iterator[bytes]:
    """Yield the messages that `lay` laid.

    Args:
        number: How many.
        shared: The same memory.
        start: As `lay` had it.
        receive: Reads so many bytes from the pipe.

    Raises:
        EOFError: More is said to lie in the memory than has room there.
    """
    place = start
    for size, is_shared in _HEADER.iter_unpack(receive(number * _HEADER.size)):
        end = place + size
        if not is_shared:
            yield receive(size)
        elif end > start + ROOM:
            raise EOFError
        else:
            yield shared[place:end]
            place = end


_START_S = 120.0
"""Time for a child to load its libraries; many start at once, on machines that are busy."""
_END_S = 1.0
_LOOK_S = 0.1
"""Time between looks at how far a child is that does not answer yet."""
_MAX_ANSWER_BYTES = 2**30


class Sandbox:
    """Judges images in one child process, which is started again when it dies or hangs."""

    def __init__(
        self, config: ShardConfig, judge: Callable[[bytes, ShardConfig], Verdict] = judge
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

    def examine(self, images: Sequence[bytes]) -> list[Verdict]:
        """Judge the bytes of inputs as `judge` does, all in one exchange with the child.

        An image that ends the child is tried again in a new one, once; one that takes longer than
        `max_seconds` is not.

        Raises:
            RuntimeError: No child can be started.
        """
        verdicts = iter(self._examine([data for data in images if self._fits(data)]))
        return [
            next(verdicts) if self._fits(data) else Verdict("quarantined", "too_big")
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

    def _examine(self, images: Sequence[bytes]) -> list[Verdict]:
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

    def _ask(self, images: Sequence[bytes]) -> list[Verdict]:
        if self._child is None:
            self._child = _Child(self._setup)
        child = self._child
        child.wait_until_ready()
        verdicts: list[Verdict] = []
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
            [sys.executable, "-m", "pipeline.ingest.gate.sandbox_child", str(shared)],
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


def _quarantined(data: bytes, reason: Reason) -> Verdict:
    return Verdict("quarantined", reason, hash_content(data), sniff(data)[0])
