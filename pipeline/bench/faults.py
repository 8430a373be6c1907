"""What a flaky server costs: throughput of the cache with 1 % failed and 5 % slow requests."""

import asyncio
import hashlib
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from pipeline.remote.cache import CacheConfig, CacheStats, ShardCache
from pipeline.remote.fetch import FetchConfig
from pipeline.remote.location import FileRequest

_FAILED = 0.01
_SLOW = 0.05
_TIMES_SLOWER = 10
_LATENCY = 0.04
"""Seconds to the first byte."""
_SPEED = 20e6
"""Bytes per second and connection."""
_CHUNK = 64 << 10
_COLUMNS = {
    # name: (share of requests that fail, share that is slow, slow_after)
    "clean": (0.0, 0.0, 3.0),
    "faulty": (_FAILED, _SLOW, 3.0),
    "faulty_without_races": (_FAILED, _SLOW, 1e9),
}


@dataclass(frozen=True, slots=True)
class _Run:
    megabytes_per_s: float
    arrived: list[int]
    """Numbers of the files that arrived whole."""
    stats: CacheStats


def measure_faults(
    num_files: int = 240, num_bytes: int = 2 << 20, rounds: int = 5, parallel: int = 4
) -> dict[str, Any]:
    """Prefetch files as a loader does, in turn from a good and from a flaky server.

    The server is a separate process on the loopback: 40 ms to the first byte, then 20 MB/s a
    connection. Flaky means that 1 % of the requests get a 503 or a reset midway, and 5 % are ten
    times slower in both respects. The last column is the flaky server without hedging.

    Returns:
        By column, `mb_per_s`, median of the rounds; `kept`, median share of the clean throughput
        of the same round; sums of `retries`, `hedges`, and files `lost` and `repeated`.
    """
    block = np.random.default_rng(0).bytes(num_bytes)
    runs: dict[str, list[_Run]] = {name: [] for name in _COLUMNS}
    with _serve(block) as url:
        for number in range(rounds):
            for name, (failed, slow, slow_after) in _COLUMNS.items():
                folder = f"{url}/{failed}/{slow}/{number}"
                wanted = [
                    FileRequest(
                        f"{folder}/{i}", num_bytes, hashlib.sha256(_body(block, i)).hexdigest()
                    )
                    for i in range(num_files)
                ]
                runs[name].append(
                    _download(wanted, FetchConfig(parallel=parallel, slow_after=slow_after))
                )
    return {name: _summary(done, runs["clean"], num_files) for name, done in runs.items()}


def _download(wanted: list[FileRequest], config: FetchConfig) -> _Run:
    """Get all files in order, from an empty cache."""
    arrived = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardCache(CacheConfig(folder=Path(folder), fetch=config)) as cache,
    ):
        begun = time.perf_counter()
        cache.prefetch(wanted)
        for item in wanted:
            file = cache.get(item.url, num_bytes=item.num_bytes, sha256=item.sha256)
            with file:
                data = file.path.read_bytes()
            if hashlib.sha256(data).hexdigest() == item.sha256:
                arrived.append(int.from_bytes(data[:8], "little"))
        seconds = time.perf_counter() - begun
        total = sum(item.num_bytes or 0 for item in wanted)
        return _Run(total / 1e6 / seconds, arrived, cache.stats())


def _summary(runs: list[_Run], clean: list[_Run], num_files: int) -> dict[str, float]:
    kept = [a.megabytes_per_s / b.megabytes_per_s for a, b in zip(runs, clean, strict=True)]
    return {
        "mb_per_s": round(statistics.median(run.megabytes_per_s for run in runs), 1),
        "kept": round(statistics.median(kept), 3),
        "retries": sum(run.stats.retries for run in runs),
        "hedges": sum(run.stats.hedges for run in runs),
        "lost": sum(num_files - len(set(run.arrived)) for run in runs),
        "repeated": sum(len(run.arrived) - len(set(run.arrived)) for run in runs),
    }


def _body(block: bytes, number: int) -> bytes:
    return number.to_bytes(8, "little") + block[8:]


@contextmanager
def _serve(block: bytes) -> Iterator[str]:
    """Run the server in a separate process, so that it takes no time from the client's."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_server, args=(theirs, block), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()  # Ends it.
        process.join()


def _server(pipe: Connection, block: bytes) -> None:
    asyncio.run(_answer(pipe, block))


async def _answer(pipe: Connection, block: bytes) -> None:
    draws = np.random.default_rng(1)

    async def file(request: web.Request) -> web.StreamResponse:
        failed, slow = (float(request.match_info[name]) for name in ("failed", "slow"))
        body = _body(block, int(request.match_info["number"]))
        slower = _TIMES_SLOWER if draws.random() < slow else 1
        fault = draws.choice(["", "503", "reset"], p=[1 - failed, failed / 2, failed / 2])
        await asyncio.sleep(_LATENCY * slower)
        if fault == "503":
            return web.Response(status=503)
        first = request.http_range.start or 0
        response = web.StreamResponse(status=206 if first else 200)
        response.content_length = len(body) - first
        if first:
            response.headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        await response.prepare(request)
        due = time.monotonic()
        for start in range(first, len(body), _CHUNK):
            if fault == "reset" and start > len(body) // 2 and request.transport is not None:
                request.transport.abort()
            await response.write(body[start : start + _CHUNK])
            due += _CHUNK / _SPEED * slower
            await asyncio.sleep(due - time.monotonic())
        return response

    app = web.Application()
    app.router.add_get("/{failed}/{slow}/{round}/{number}", file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # Losers of races disconnect.
    pipe.send("http://{}:{}".format(*runner.addresses[0]))
    await asyncio.to_thread(pipe.poll, None)
    await runner.cleanup()
