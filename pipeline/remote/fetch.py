"""Fetch files from any URL, complete and verified: retries, resumption, hedged requests."""

import asyncio
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.asyn import get_loop
from pydantic import Field

from pipeline.config import Config
from pipeline.remote.filesystem import ADVICE
from pipeline.remote.location import FileRequest, check_scheme, is_remote, local_path, redact_url
from pipeline.remote.transport import (
    Kind,
    Lap,
    Link,
    RequestError,
    Sink,
    TransferStats,
    Watch,
    new_link,
    pull,
)

T = TypeVar("T")

_TICK = 0.02
"""Seconds between checks of a transfer."""
_LONGEST_PAUSE = 30.0
_FIRM_TRIES = 2
"""A 404 may come from a stale cache, a 403 from a token being renewed: one retry. More would only
delay the report of a wrong address."""
_ADVICE: dict[str, str] = {
    **ADVICE,
    "exhausted": "Check the network and the server, or raise attempts, timeout or budget.",
    "corrupt": "It is not the file that was written: upload it again or shard again.",
}


class FetchConfig(Config):
    """How persistently to fetch a file."""

    attempts: int = Field(default=8, ge=1)
    """Attempts for a file; each resumes the one before."""
    timeout: float = Field(default=30, gt=0)
    """Seconds without progress after which a transfer is aborted."""
    backoff: float = Field(default=0.5, ge=0)
    """Base of the exponential backoff, s: doubled up to 30 s, with full jitter."""
    budget: float = Field(default=600, gt=0)
    """Total seconds for one file."""
    slow_after: float = Field(default=3, gt=1)
    """A request this many times slower than usual is hedged by a second one, for at most a tenth
    of the files; a very large number disables this."""
    parallel: int = Field(default=4, ge=1)
    """Files prefetched at a time; those that pause or are late do not count."""


class FetchError(RuntimeError):
    """A file that could not be fetched; the message names URL, failure, tries and what to do."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[type["FetchError"], tuple[str, Kind]]:
        return FetchError, (str(self), self.kind)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched."""

    num_bytes: int
    sha256: str
    tries: int


@dataclass(slots=True)
class Counters:
    """Cost of fetching so far."""

    bytes_fetched: int = 0
    """Bytes received, those of losing hedges included."""
    retries: int = 0
    hedges: int = 0
    """Second requests raced against slow ones."""
    corrupt: int = 0
    """Bodies that were not the requested file."""


def read_bytes(url: str, config: FetchConfig) -> bytes:
    """Read a small file, such as a manifest, from a URL or a local path.

    Raises:
        FetchError: The URL cannot be read.
        ConfigError: Its scheme is not allowed, or its package is not installed.
        OSError: The local file cannot be read.
    """
    check_scheme(url)
    if not is_remote(url):
        return local_path(url).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch_file(url, target, num_bytes=None, sha256=None, config=config)
        return target.read_bytes()


def read_if_there(url: str) -> bytes | None:
    """Read a small file as `read_bytes` does; None if it does not exist."""
    try:
        return read_bytes(url, FetchConfig())
    except FileNotFoundError:
        return None
    except FetchError as error:
        if error.kind in ("missing", "gone"):
            return None
        raise


def map_file(url: str) -> memoryview:
    """Map a file, uint8; a remote one is fetched into a file that lives as long as the mapping.

    Raises:
        FetchError: It cannot be fetched.
        ConfigError: Its scheme is not allowed, or its package is not installed.
        OSError: It cannot be read.
    """
    if not is_remote(url):
        return _map(local_path(url))
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        path = Path(folder) / "file"
        fetch_file(url, path, num_bytes=None, sha256=None, config=FetchConfig())
        return _map(path)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # An empty file cannot be mapped.
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def fetch_file(
    url: str, target: Path, *, num_bytes: int | None, sha256: str | None, config: FetchConfig
) -> Fetched:
    """Copy a URL to `target` atomically: complete, verified and flushed to the disk.

    Args:
        url: URL of an allowed scheme.
        target: Replaced if it exists.
        num_bytes: Required size; None if unknown.
        sha256: Required hash; None if unknown.
        config: How persistently to try.

    Raises:
        FetchError: It cannot be fetched, or is another file.
        ConfigError: Its scheme is not allowed, or its package is not installed.
        OSError: `target` cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns()}.partial")

    async def fetch() -> Fetched:
        fetcher = Fetcher(config)
        try:
            return await fetcher.download(FileRequest(url, num_bytes, sha256), partial)
        finally:
            await fetcher.close()

    try:
        fetched = run(fetch())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return fetched


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on fsspec's event loop, a daemon thread; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, get_loop())
    try:
        return future.result()
    finally:
        future.cancel()


def _keep(_: int) -> None:
    """Ignore pauses."""


class Fetcher:
    """Downloads that share connections, disk threads and statistics of the usual speed.

    All methods run on fsspec's event loop.
    """

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.counters = Counters()
        self._pace = TransferStats(config.slow_after)
        self._random = random.Random()  # Only jitter, which must differ between nodes.
        self._threads = ThreadPoolExecutor(2 * config.parallel, thread_name_prefix="fetch")
        self._link: Link | None = None

    async def close(self) -> None:
        """Close connections and threads."""
        if self._link is not None:
            await self._link.session.close()
        self._threads.shutdown()

    async def thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function off the loop; a cancelled wait still awaits the function."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.gather(future, return_exceptions=True)
            raise

    async def download(
        self, wanted: FileRequest, partial: Path, lend: Callable[[int], None] | None = None
    ) -> Fetched:
        """Fill the file `partial`; raises what `fetch_file` does.

        `lend` is called with 1 when the transfer starts to pause or to be late, so that others may
        use the network, and with -1 when that ends.
        """
        check_scheme(wanted.url)
        deadline = time.monotonic() + self.config.budget
        sink = Sink(partial, wanted.num_bytes, wanted.sha256)
        lend = lend or _keep
        try:
            for tries in range(1, self.config.attempts + 1):
                try:
                    watch = Watch(sink, self.config.timeout, deadline)
                    await self._race(wanted.url, sink, watch, lend)
                    digest = sink.check()
                except RequestError as fault:
                    pause = self._pause(wanted.url, fault, tries, deadline)
                    lend(1)
                    try:
                        await asyncio.sleep(pause)
                    finally:
                        lend(-1)
                    if fault.restart:
                        sink.restart()
                else:
                    await self.thread(sink.flush)
                    return Fetched(sink.offset, digest, tries)
            raise AssertionError("_pause raises after the last try")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            self.counters.bytes_fetched += sink.received
            sink.close()

    def _pause(self, url: str, fault: RequestError, tries: int, deadline: float) -> float:
        """Return the seconds before the next try; raises FetchError if there is none."""
        self.counters.corrupt += fault.kind == "corrupt"
        ceiling = min(self.config.backoff * 2 ** min(tries - 1, 32), _LONGEST_PAUSE)
        pause = max(fault.retry_after, self._random.uniform(0, ceiling))
        last = _FIRM_TRIES if fault.firm else self.config.attempts
        if tries >= last or time.monotonic() + pause > deadline:
            asks = f" and asks to wait {fault.retry_after:.0f} s" if fault.retry_after else ""
            raise FetchError(
                f"{redact_url(url)}: {fault}{asks}, "
                f"after {tries} {'try' if tries == 1 else 'tries'}. "
                f"{_ADVICE[fault.kind]}",
                fault.kind,
            ) from None
        self.counters.retries += 1
        return pause

    async def _race(self, url: str, sink: Sink, watch: Watch, lend: Callable[[int], None]) -> None:
        """Fill the sink by one request, hedged by a second if it is late."""
        lap = Lap()
        tasks = {asyncio.create_task(self._request(url, sink, lap))}
        raced = False
        try:
            while True:
                done, tasks = await asyncio.wait(
                    tasks, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED
                )
                errors = [task.exception() for task in done]
                if None in errors:
                    return
                for error in errors:
                    if error is not None and not tasks:
                        raise error
                watch.check()
                if not raced and self._pace.is_late(lap) and self._pace.may_race():
                    raced = True
                    self.counters.hedges += 1
                    lend(1)
                    tasks.add(asyncio.create_task(self._request(url, sink, Lap())))
        finally:
            if raced:
                lend(-1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _request(self, url: str, sink: Sink, lap: Lap) -> None:
        if self._link is None:
            self._link = await new_link(self.config.timeout, self.thread)
        await pull(url, sink, lap, self._link)
        self._pace.finish(lap)
