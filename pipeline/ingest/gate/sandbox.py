"""The gate in its own process: a decoder that crashes or hangs costs one image, no more."""

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

COUNT = struct.Struct("<I")
"""Starts an exchange: the number of messages, which is also that of the replies."""
CAPACITY = 2**20
"""Bytes of shared memory for messages, and as many for replies; what does not fit goes through the
pipes, at three times the cost."""
MESSAGES, REPLIES = COUNT.size, COUNT.size + CAPACITY
"""Their offsets; before them stands the number of messages of this exchange already done."""
SHARED_BYTES = REPLIES + CAPACITY
READY = b"ready"
"""The first reply, once everything is loaded."""

_HEADER = struct.Struct("<I?")  # Of each message: its length, and whether it is in shared memory.
_START_S = 120.0
"""Time limit for a child to load its libraries; many may start at once, on busy machines."""
_END_S = 1.0
_POLL_S = 0.1
"""Time between checks of the progress of a child that has not replied yet."""
_MAX_REPLY_BYTES = 2**30
_SIZES = struct.Struct("<4I")  # JSON, stored image, near words, thumbnail.
_BLOBS = ("stored", "near_words", "thumbnail")
_PLAIN = [item.name for item in dataclasses.fields(Verdict) if item.name not in _BLOBS]


class Sandbox:
    """Judges images in one child process, which is restarted when it dies or hangs."""

    def __init__(
        self, config: ShardConfig, judge: Callable[[bytes, ShardConfig], Verdict] = judge
    ) -> None:
        """Start the child; the first `examine` waits until it is ready.

        Args:
            config: Limits and rules.
            judge: A module-level function that the child can import.
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
        """Process id of the child; None where none is running."""
        return None if self._child is None else self._child.pid

    def examine(self, images: Sequence[bytes]) -> list[Verdict]:
        """Judge inputs as `judge` does, all in one exchange with the child.

        An image that kills the child is retried once, in a new one; an image that takes longer
        than `max_seconds` is not.

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
        child, self._child = self._child, None
        if child is not None:
            child.stop()

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
            return self._exchange(images)
        except _StoppedError as stop:
            at, verdict = stop.at, _quarantined(images[stop.at], stop.reason)
        if verdict.reason == "decoder_crash":
            try:
                (verdict,) = self._exchange([images[at]])
            except _StoppedError as stop:
                verdict = _quarantined(images[at], stop.reason)
        return [*self._examine(images[:at]), verdict, *self._examine(images[at + 1 :])]

    def _exchange(self, images: Sequence[bytes]) -> list[Verdict]:
        if self._child is None:
            self._child = _Child(self._setup)
        child = self._child
        child.wait_until_ready()
        verdicts: list[Verdict] = []
        try:
            for data, reply in zip(
                images, child.exchange(images, self._config.max_seconds), strict=True
            ):
                verdicts.append(decode_verdict(reply, data))
        except ValueError:
            self.close()
            raise _StoppedError(len(verdicts), "decoder_crash") from None
        except (TimeoutError, EOFError) as error:
            at = min(child.num_done(), len(images) - 1)
            self.close()
            is_late = isinstance(error, TimeoutError)
            raise _StoppedError(at, "timeout" if is_late else "decoder_crash") from None
        except BaseException:  # Ctrl-C: the outstanding replies must not answer the next exchange.
            self.close()
            raise
        return verdicts


class _StoppedError(Exception):
    """The child died or had to be killed at image number `at`."""

    def __init__(self, at: int, reason: Literal["timeout", "decoder_crash"]) -> None:
        super().__init__(reason)
        self.at, self.reason = at, reason


class _Child:
    """A running `sandbox_child`, and the pipes to it."""

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
            if self.exchange([self._setup], _START_S) != [READY]:
                raise EOFError
        except (EOFError, TimeoutError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)  # Its own exit status tells more than that of a kill.
            self.stop()
            raise RuntimeError(
                f"the process that decodes images did not start (exit status "
                f"{self._process.returncode}); see its own message above."
            ) from None
        self._setup = None

    def exchange(self, messages: Sequence[bytes], seconds: float) -> list[bytes]:
        """Send messages and wait for the replies.

        Raises:
            TimeoutError: One took longer than `seconds`.
            EOFError: The child is gone, or its replies are invalid.
        """
        COUNT.pack_into(self._shared, 0, 0)
        number = len(messages)
        patience = _Patience(seconds, lambda: min(self.num_done(), number))
        through_pipe = put_messages(messages, self._shared, MESSAGES)
        for part in (COUNT.pack(number), *through_pipe):
            self._send(part, patience)
        receive = functools.partial(self._receive, patience=patience)
        return list(take_messages(number, self._shared, REPLIES, receive))

    def num_done(self) -> int:
        """Return how many messages of the last exchange the child has done."""
        return int(COUNT.unpack_from(self._shared)[0])

    def stop(self) -> None:
        """Kill the process and wait for its end."""
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
        if size > _MAX_REPLY_BYTES:
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
    """Waits for a child as long as it makes progress."""

    def __init__(self, seconds: float, progress: Callable[[], int]) -> None:
        self._seconds, self._progress = seconds, progress
        self._seen, self._deadline = 0, time.monotonic() + seconds

    def wait(self, pipe: int, event: int) -> None:
        """Wait until a pipe is ready; raises TimeoutError after `seconds` without progress."""
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(_POLL_S * 1000):
            now, done = time.monotonic(), self._progress()
            if done > self._seen:
                self._seen, self._deadline = done, now + self._seconds
            elif now >= self._deadline:
                raise TimeoutError


def _quarantined(data: bytes, reason: Reason) -> Verdict:
    return Verdict("quarantined", reason, hash_content(data), sniff(data)[0])


def put_messages(messages: Iterable[bytes], shared: mmap.mmap, start: int) -> list[bytes]:
    """Put messages into the shared memory from `start` on, as far as they fit.

    Returns:
        What goes through the pipe: the headers of all, and each message that did not fit.
    """
    headers, unshared, offset = [], [], start
    for message in messages:
        end = offset + len(message)
        is_shared = end <= start + CAPACITY
        headers.append(_HEADER.pack(len(message), is_shared))
        if is_shared:
            shared[offset:end] = message
            offset = end
        else:
            unshared.append(message)
    return [b"".join(headers), *unshared]


def take_messages(
    number: int, shared: mmap.mmap, start: int, receive: Callable[[int], bytes]
) -> Iterator[bytes]:
    """Yield the messages that `put_messages` put.

    Args:
        number: How many.
        shared: The same memory.
        start: The same offset.
        receive: Reads a number of bytes from the pipe.

    Raises:
        EOFError: The headers claim more in shared memory than fits there.
    """
    offset = start
    for size, is_shared in _HEADER.iter_unpack(receive(number * _HEADER.size)):
        end = offset + size
        if not is_shared:
            yield receive(size)
        elif end > start + CAPACITY:
            raise EOFError
        else:
            yield shared[offset:end]
            offset = end


def encode_verdict(verdict: Verdict, data: bytes) -> bytes:
    """Serialise the verdict on `data`; an input that is stored unchanged is not repeated."""
    same = bool(data) and verdict.stored == data
    facts = {name: getattr(verdict, name) for name in _PLAIN}
    words = b"" if verdict.near_words is None else verdict.near_words.astype("<u8").tobytes()
    stored = b"" if same else verdict.stored
    blobs = json.dumps([facts, same]).encode(), stored, words, verdict.thumbnail
    return b"".join([_SIZES.pack(*map(len, blobs)), *blobs])


def decode_verdict(reply: bytes, data: bytes) -> Verdict:
    """Parse what `encode_verdict` made of the verdict on `data`.

    Raises:
        ValueError: It is malformed.
    """
    try:
        facts, stored, words, thumbnail = _split(reply)
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
