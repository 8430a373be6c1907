"""One request for a file or the rest of it: HTTP by aiohttp, everything else by fsspec.

fsspec's own HTTP hides short bodies and Retry-After. aiohttp comes with Ray's dashboard and s3fs,
has types, and its requests can be cancelled at any point.
"""

import asyncio
import hashlib
import os
import re
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

import aiohttp
import yarl
from fsspec.asyn import AsyncFileSystem

from pipeline.config import ConfigError
from pipeline.remote.filesystem import STATUS_KINDS, name_status, open_filesystem
from pipeline.remote.location import HTTP, PACKAGES, as_sent, redact_text, redact_url, scheme_of

Kind = Literal["missing", "gone", "forbidden", "exhausted", "corrupt"]
Thread = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments off the event loop."""

_TRICKLE = 64 << 10
"""Bytes within the timeout below which a transfer counts as stalled."""


class RequestError(RuntimeError):
    """A request that failed."""

    def __init__(self, text: str, kind: Kind = "exhausted", *, firm: bool = False) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.firm = firm
        """Whether the failure is permanent, so that many more tries are useless."""
        self.restart = kind == "corrupt"
        """Whether the bytes received so far are useless."""
        self.retry_after = 0.0
        """Pause requested by the server, s."""


class Sink:
    """A file filled in order by consecutive requests, or by two that race.

    Both advance the same end: bytes before it are dropped, so the slower one costs neither a second
    file nor a second hash.
    """

    def __init__(self, path: Path, num_bytes: int | None, sha256: str | None) -> None:
        self.num_bytes = num_bytes
        """Size of the whole file, if known."""
        self.offset = 0
        """Bytes written so far."""
        self.received = 0
        """Bytes received, dropped ones included."""
        self.etag: str | None = None
        """Version being read; unused when the hash is known, since two servers behind one name may
        tag the same file differently."""
        self._sha256 = sha256
        self._hash = hashlib.sha256()
        self._wrong: str | None = None
        self._turn = asyncio.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def expect(self, num_bytes: int | None, etag: str | None) -> None:
        """Compare a server's size and tag with what is known; raises RequestError."""
        if None not in (num_bytes, self.num_bytes) and num_bytes != self.num_bytes:
            raise RequestError(f"has {num_bytes} bytes, not {self.num_bytes}", "corrupt", firm=True)
        if self._sha256 is None:
            if None not in (etag, self.etag) and etag != self.etag:
                raise RequestError("changed while it was read", "corrupt")
            self.etag = etag

    async def write(self, position: int, data: bytes, thread: Thread) -> None:
        """Write the bytes at `position`, without a gap; raises RequestError and OSError."""
        self.received += len(data)
        if self.num_bytes is not None and position + len(data) > self.num_bytes:
            raise RequestError(f"sends more than its {self.num_bytes} bytes", "corrupt")
        async with self._turn:
            assert position <= self.offset
            if fresh := memoryview(data)[self.offset - position :]:
                await thread(self._append, fresh)

    def restart(self) -> None:
        """Discard all bytes."""
        self.offset, self.etag, self._hash = 0, None, hashlib.sha256()

    def check(self) -> str:
        """Compare the whole file with its hash.

        Returns:
            Its SHA-256.

        Raises:
            RequestError: The hash differs; firm if it came out the same twice.
        """
        found = self._hash.hexdigest()
        if self._sha256 not in (None, found):
            firm, self._wrong = found == self._wrong, found
            raise RequestError(
                f"has sha256 {found[:16]}, not {self._sha256:.16}", "corrupt", firm=firm
            )
        return found

    def flush(self) -> None:
        """Truncate the file after its last byte and flush it to the disk."""
        os.ftruncate(self._file, self.offset)
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, data: memoryview) -> None:
        # In one step, off the loop: a request cancelled here has still advanced the end.
        self._hash.update(data)
        rest = data
        while rest:
            done = os.pwrite(self._file, rest, self.offset + len(data) - len(rest))
            rest = rest[done:]
        self.offset += len(data)


class Watch:
    """Detects a transfer that stalls or exceeds its deadline."""

    def __init__(self, sink: Sink, timeout: float, deadline: float) -> None:
        self._sink = sink
        self._timeout = timeout
        self._deadline = deadline
        self._since, self._had = time.monotonic(), sink.received

    def check(self) -> None:
        """Raise RequestError if the transfer must end."""
        now = time.monotonic()
        if now > self._deadline:
            raise RequestError(f"timed out after {self._sink.offset} bytes", firm=True)
        if now - self._since > self._timeout:
            if (came := self._sink.received - self._had) < _TRICKLE:
                raise RequestError(f"stalled: {came} bytes in {self._timeout:g} s")
            self._since, self._had = now, self._sink.received


_RECENT = 32
_FEWEST = 5
"""Transfers needed to know what is usual."""
_SHARE = 0.1
"""Share of all transfers that may be hedged; if everything is slow, more requests do not help."""
_FLOOR = 0.05
"""Seconds added to the usual time, so that jitter of very fast servers starts no race."""


@dataclass(slots=True)
class Lap:
    """One running request; seconds of the monotonic clock."""

    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Arrival of its first bytes."""
    num_bytes: int = 0
    """Bytes received."""

    def add(self, num_bytes: int) -> None:
        """Count bytes that just arrived."""
        if self.first is None:
            self.first = time.monotonic()
        self.num_bytes += num_bytes


class TransferStats:
    """Median time to first byte and median speed after it, of recent transfers."""

    def __init__(self, slow_after: float) -> None:
        self._slow_after = slow_after
        self._waits: deque[float] = deque(maxlen=_RECENT)
        self._speeds: deque[float] = deque(maxlen=_RECENT)
        self._races = 2.0
        """Races that may be started; finished transfers earn more."""

    def finish(self, lap: Lap) -> None:
        """Learn from a finished request."""
        if lap.first is None:
            return
        self._waits.append(lap.first - lap.started)
        self._speeds.append(lap.num_bytes / max(1e-6, time.monotonic() - lap.first))
        self._races = min(self._races + _SHARE, _RECENT * _SHARE)

    def is_late(self, lap: Lap) -> bool:
        """Tell whether a usual request would have had these bytes `slow_after` times sooner.

        A request ten times slower is thus found after a few usual times to first byte, not after
        several times the usual time of a whole file.
        """
        if len(self._waits) < _FEWEST:
            return False
        usual = statistics.median(self._waits) + lap.num_bytes / statistics.median(self._speeds)
        return time.monotonic() - lap.started > _FLOOR + self._slow_after * usual

    def may_race(self) -> bool:
        """Claim one more race, if allowed."""
        if self._races < 1:
            return False
        self._races -= 1
        return True


_STEPS = (1 << 20, 16 << 20)
"""Bytes per range request where there is no stream: at first, and at most after doubling."""
_TRANSIENT = (408, 416, 425, 429)
"""Client errors that a retry may resolve, like all of 500 to 599."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_HOPELESS = (aiohttp.InvalidURL, aiohttp.ClientSSLError, ValueError)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Link:
    """Connections and threads of requests."""

    session: aiohttp.ClientSession
    thread: Thread


async def new_link(timeout: float, thread: Thread) -> Link:
    """Open a connection pool; `timeout` (s) is per connect."""
    session = aiohttp.ClientSession(
        auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        read_bufsize=1 << 20,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout),
        trust_env=True,  # Proxies, and passwords from .netrc.
    )
    return Link(session, thread)


async def pull(url: str, sink: Sink, lap: Lap, link: Link) -> None:
    """Fill `sink` from its offset to its end by one request; `lap` counts the bytes.

    Raises:
        RequestError: The server or the network failed, or the file changed.
        ConfigError: The package for the URL's scheme is not installed.
        OSError: The sink's disk failed.
    """
    if scheme_of(url) in HTTP:
        await _pull_http(url, sink, lap, link)
    else:
        await _pull_ranges(url, sink, lap, link.thread)
    if sink.num_bytes is not None and sink.offset < sink.num_bytes:
        raise RequestError(f"the body ended after {sink.offset} of {sink.num_bytes} bytes")


async def _pull_http(url: str, sink: Sink, lap: Lap, link: Link) -> None:
    headers = {"Range": f"bytes={sink.offset}-"} if sink.offset else {}
    if sink.offset and sink.etag:
        headers["If-Range"] = sink.etag
    target = url
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            sent = yarl.URL(as_sent(target), encoded=True)
            # Redirects are followed here: aiohttp would quote their addresses anew.
            async with link.session.get(sent, headers=headers, allow_redirects=False) as response:
                following = _redirect(response, target)
                if following is None:
                    return await _read_body(response, sink, lap, link)
                target = following
    except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError, ValueError) as error:
        raise RequestError(_line(error), firm=isinstance(error, _HOPELESS)) from None
    raise RequestError(f"more than {_MAX_REDIRECTS} redirects", firm=True)


def _redirect(response: aiohttp.ClientResponse, url: str) -> str | None:
    """Return the address that a response redirects to, byte for byte; None if it does not."""
    location = response.headers.get("Location", "").strip()
    if response.status not in _REDIRECTS or not location:
        return None
    if (scheme := scheme_of(location)) in HTTP:
        return location
    if scheme:
        raise RequestError(f"redirects to {scheme}:, which is not HTTP", firm=True)
    if location.startswith("//"):
        return f"{scheme_of(url)}:{location}"
    if location.startswith("/"):
        origin = re.match(r"[^:/?#]+://[^/?#]*", url)
        return (origin[0] if origin else "") + location
    return urljoin(url, location)


async def _read_body(response: aiohttp.ClientResponse, sink: Sink, lap: Lap, link: Link) -> None:
    position = _first_byte(response, sink)
    async for piece in response.content.iter_any():
        lap.add(len(piece))
        await sink.write(position, piece, link.thread)
        position += len(piece)


def _first_byte(response: aiohttp.ClientResponse, sink: Sink) -> int:
    """Return the position at which the body starts; raises RequestError if there is none."""
    status, headers = response.status, response.headers
    etag = headers.get("ETag")
    if status == 200:
        sink.expect(response.content_length, etag)
        return 0
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if span and status in (206, 416):
        sink.expect(int(span[2]) if span[2] != "*" else None, etag if status == 206 else None)
        if span[1] and int(span[1]) <= sink.offset:
            return int(span[1])
    raise _refusal(status, headers.get("Retry-After", ""))


def _refusal(status: int, retry_after: str) -> RequestError:
    fault = RequestError(name_status(status))
    fault.firm = 400 <= status < 500 and status not in _TRANSIENT
    fault.restart = status in (206, 416)  # Not the requested range.
    fault.retry_after = _seconds(retry_after)
    fault.kind = STATUS_KINDS.get(status, "exhausted")
    return fault


def _seconds(retry_after: str) -> float:
    """Parse a Retry-After header, seconds or a date."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (aware - datetime.now(timezone.utc)).total_seconds())


async def _pull_ranges(url: str, sink: Sink, lap: Lap, thread: Thread) -> None:
    """Read range by range: fsspec's open files can be neither resumed nor cancelled."""
    files, path = await _find(url, thread)
    info = await _ask(partial(_call, files, "info", path, thread))
    num_bytes = int(info["size"])
    sink.expect(num_bytes, info.get("ETag"))
    step, most = _STEPS
    while (start := sink.offset) < num_bytes:
        end = min(start + step, num_bytes)
        data = await _ask(partial(_call, files, "cat_file", path, thread, start=start, end=end))
        lap.add(len(data))
        await sink.write(start, data, thread)
        if len(data) < end - start:
            raise RequestError(f"the body ended after {sink.offset} of {num_bytes} bytes")
        step = min(2 * step, most)


async def _find(url: str, thread: Thread) -> tuple[Any, str]:
    """Open the file system of a URL, configured by the environment."""
    try:
        files, path = await _ask(partial(thread, open_filesystem, url))
    except ImportError:
        raise ConfigError(
            f"location (={redact_url(url)}) needs a package that is not installed: "
            f"pip install {PACKAGES[scheme_of(url)]}"
        ) from None
    return files, path


async def _call(files: Any, method: str, path: str, thread: Thread, **how: int) -> Any:
    if isinstance(files, AsyncFileSystem):  # Its tasks can be cancelled; a thread cannot.
        return await getattr(files, f"_{method}")(path, **how)
    return await thread(partial(getattr(files, method), path, **how))


async def _ask(request: Callable[[], Awaitable[Any]]) -> Any:
    """Turn whatever an fsspec file system raises into a RequestError."""
    try:
        return await request()
    except ImportError:
        raise
    except FileNotFoundError:
        raise RequestError("no such file", "missing", firm=True) from None
    except PermissionError as error:
        raise RequestError(_line(error), "forbidden", firm=True) from None
    except Exception as error:  # Each backend leaks errors of its own libraries.
        if type(error).__name__ in _NO_CREDENTIALS:
            raise RequestError(_line(error), "forbidden", firm=True) from None
        raise RequestError(_line(error), firm=isinstance(error, ValueError | TypeError)) from None


def _line(error: Exception) -> str:
    text = redact_text(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
