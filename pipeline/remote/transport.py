"""One request for a file, or for the rest of it: HTTP by aiohttp, everything else by fsspec.

fsspec's own HTTP hides short bodies and Retry-After. aiohttp is there wherever Ray's dashboard or
s3fs is, has types, and a request of it can be cancelled at any point.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import aiohttp
import fsspec
import yarl
from fsspec.asyn import AsyncFileSystem

from pipeline.config import ConfigError
from pipeline.remote.location import HTTP, PACKAGES, scheme_of, shown
from pipeline.remote.pace import Lap
from pipeline.remote.sink import RequestError, Sink, Thread

_STEPS = (1 << 20, 16 << 20)
"""Bytes asked for at once where there is no stream: at first, and at most after doubling."""
_TRANSIENT = (408, 416, 425, 429)
"""Client errors that another try may mend; so may all of 500 to 599."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_HOPELESS = (aiohttp.InvalidURL, aiohttp.TooManyRedirects, aiohttp.ClientSSLError)


@dataclass(frozen=True, slots=True)
class Link:
    """What requests go through."""

    session: aiohttp.ClientSession
    thread: Thread


async def new_link(timeout: float, thread: Thread) -> Link:
    """Open a pool of connections; `timeout` (s) is for making one."""
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
    """Fill `sink` from its offset to its end by one request; `lap` counts what comes.

    Raises:
        RequestError: The server or the network failed, or the file is another one.
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
    # What is escaped already, such as a signed query, goes out byte by byte.
    target = yarl.URL(url, encoded="%" in url)
    try:
        async with link.session.get(target, headers=headers, max_redirects=5) as response:
            position = _first_byte(response, sink)
            async for piece in response.content.iter_any():
                lap.add(len(piece))
                await sink.write(position, piece, link.thread)
                position += len(piece)
    except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
        raise RequestError(_line(error), firm=isinstance(error, _HOPELESS)) from None


def _first_byte(response: aiohttp.ClientResponse, sink: Sink) -> int:
    """Position in the file at which the body begins; raises RequestError where there is none."""
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
    fault = RequestError(f"HTTP status {status}")
    fault.firm = 400 <= status < 500 and status not in _TRANSIENT
    fault.restart = status in (206, 416)  # The range is not the one that was asked for.
    fault.retry_after = _seconds(retry_after)
    if status in (401, 403):
        fault.kind = "forbidden"
    if status in (404, 410):
        fault.kind = "missing"
    return fault


def _seconds(retry_after: str) -> float:
    """Read a Retry-After header, a number of seconds or a date."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (aware - datetime.now(timezone.utc)).total_seconds())


async def _pull_ranges(url: str, sink: Sink, lap: Lap, thread: Thread) -> None:
    """Read range by range: what fsspec opens can be neither resumed nor cancelled."""
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
    """Open the file system of a URL, with what fsspec finds in the environment."""
    try:
        files, path = await _ask(partial(thread, fsspec.core.url_to_fs, url))
    except ImportError:
        raise ConfigError(
            f"location (={shown(url)}) needs a package that is not installed: "
            f"pip install {PACKAGES[scheme_of(url)]}"
        ) from None
    return files, path


async def _call(files: Any, method: str, path: str, thread: Thread, **how: int) -> Any:
    if isinstance(files, AsyncFileSystem):  # Its tasks can be cancelled; a thread cannot.
        return await getattr(files, f"_{method}")(path, **how)
    return await thread(partial(getattr(files, method), path, **how))


async def _ask(request: Callable[[], Awaitable[Any]]) -> Any:
    """Turn whatever a file system of fsspec raises into a RequestError."""
    try:
        return await request()
    except ImportError:
        raise
    except FileNotFoundError:
        raise RequestError("no such file", "missing", firm=True) from None
    except PermissionError as error:
        raise RequestError(_line(error), "forbidden", firm=True) from None
    except Exception as error:  # Each backend lets errors of its own libraries through.
        if type(error).__name__ in _NO_CREDENTIALS:
            raise RequestError(_line(error), "forbidden", firm=True) from None
        raise RequestError(_line(error), firm=isinstance(error, ValueError | TypeError)) from None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
