"""The file that a transfer fills, and how a request for it may fail."""

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["missing", "forbidden", "exhausted", "corrupt"]
Thread = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments off the event loop."""

_TRICKLE = 64 << 10
"""Bytes within the timeout that tell a slow transfer from one that stalled."""


class RequestError(RuntimeError):
    """A request that failed."""

    def __init__(self, text: str, kind: Kind = "exhausted", *, firm: bool = False) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.firm = firm
        """The server means it: many more tries are of no use."""
        self.restart = kind == "corrupt"
        """What arrived so far is of no use."""
        self.retry_after = 0.0
        """Pause that the server asks for, s."""


class Sink:
    """A file filled in order by one request after another, or by two that race.

    Both push the same end forward: bytes before it are dropped, so that the slower one costs
    neither a second file nor a second hash.
    """

    def __init__(self, path: Path, num_bytes: int | None, sha256: str | None) -> None:
        self.num_bytes = num_bytes
        """Size of the whole file, where it is known."""
        self.offset = 0
        """Bytes that are there."""
        self.received = 0
        """Bytes that came, dropped ones among them."""
        self.etag: str | None = None
        """Version that is being read; None where the hash proves better that all bytes belong
        together: two servers of one name may give one file two tags."""
        self._sha256 = sha256
        self._hash = hashlib.sha256()
        self._wrong: str | None = None
        self._turn = asyncio.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def expect(self, num_bytes: int | None, etag: str | None) -> None:
        """Compare what a server says of the file with what is known of it; raises RequestError."""
        if None not in (num_bytes, self.num_bytes) and num_bytes != self.num_bytes:
            raise RequestError(f"has {num_bytes} bytes, not {self.num_bytes}", "corrupt", firm=True)
        if self._sha256 is None:
            if None not in (etag, self.etag) and etag != self.etag:
                raise RequestError("changed while it was read", "corrupt")
            self.etag = etag

    async def write(self, position: int, data: bytes, thread: Thread) -> None:
        """Take the bytes at `position`, which leave no gap; raises RequestError and OSError."""
        self.received += len(data)
        if self.num_bytes is not None and position + len(data) > self.num_bytes:
            raise RequestError(f"sends more than its {self.num_bytes} bytes", "corrupt")
        async with self._turn:
            assert position <= self.offset
            if fresh := memoryview(data)[self.offset - position :]:
                await thread(self._append, fresh)

    def restart(self) -> None:
        """Forget all bytes."""
        self.offset, self.etag, self._hash = 0, None, hashlib.sha256()

    def check(self) -> str:
        """Compare the whole file with its hash.

        Returns:
            Its SHA-256.

        Raises:
            RequestError: It is another one; firm where it came out the same twice.
        """
        found = self._hash.hexdigest()
        if self._sha256 not in (None, found):
            firm, self._wrong = found == self._wrong, found
            raise RequestError(
                f"has sha256 {found[:16]}, not {self._sha256:.16}", "corrupt", firm=firm
            )
        return found

    def flush(self) -> None:
        """Cut the file behind its last byte and bring it to the disk."""
        os.ftruncate(self._file, self.offset)
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, data: memoryview) -> None:
        # All in one, off the loop: a request that is cancelled here has still moved the end.
        self._hash.update(data)
        rest = data
        while rest:
            done = os.pwrite(self._file, rest, self.offset + len(data) - len(rest))
            rest = rest[done:]
        self.offset += len(data)


class Watch:
    """Ends a transfer that stalls or exceeds its time."""

    def __init__(self, sink: Sink, timeout: float, deadline: float) -> None:
        self._sink = sink
        self._timeout = timeout
        self._deadline = deadline
        self._since, self._had = time.monotonic(), sink.received

    def check(self) -> None:
        """Raise RequestError where it is over."""
        now = time.monotonic()
        if now > self._deadline:
            raise RequestError(f"is not there in time ({self._sink.offset} bytes are)", firm=True)
        if now - self._since > self._timeout:
            if (came := self._sink.received - self._had) < _TRICKLE:
                raise RequestError(f"stalled: {came} bytes in {self._timeout:g} s")
            self._since, self._had = now, self._sink.received
