"""Push plans through a graph that runs ahead; build it anew where an image does not decode."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.counters import LoaderCounters
from pipeline.dali.decode import decode_rgb
from pipeline.dali.graph import Arrays, Feed, Graph
from pipeline.dali.header import decoded_size
from pipeline.shards.store import Samples


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch before its pixels exist."""

    epoch: int
    step: int
    sample_ids: NDArray[np.int64]
    """(B,), whose bytes are read."""
    replaced: int
    """How many of them took the place of a damaged sample."""
    samples: Samples
    labels: NDArray[np.int64]
    arrays: tuple[Arrays, ...]
    """What the graph is fed."""


Repair = Callable[[Planned, RuntimeError], Planned]


def run_plans(
    plans: Iterator[Planned],
    build: Callable[[Feed], Graph],
    repair: Repair,
    counters: LoaderCounters,
) -> Iterator[tuple[Planned, Tensor]]:
    """Yield each plan with its views, in order.

    A graph whose batch fails is thrown away: what it still held is fed to a new one, the failed
    batch first, as `repair` returns it. An error of `plans` is raised behind the last good batch.
    """
    plans = (_parsed(planned, repair) for planned in plans)
    again: deque[Planned] = deque()
    pending: Exception | None = None
    while True:
        ahead: deque[Planned] = deque()
        feed = _Feed(plans, again, ahead, counters, pending)
        graph = build(feed)
        try:
            yield from _run(graph, feed, ahead, counters)
        except RuntimeError as error:
            if error is feed.error or not ahead:
                raise
            pending = feed.error  # Of a later plan: the batch that failed is to be named first.
            first, *rest = ahead
            again.extendleft(reversed([_parsed(repair(first, error), repair), *rest]))
            counters.rebuilds += 1
        else:
            return


def _run(
    graph: Graph, feed: "_Feed", ahead: deque[Planned], counters: LoaderCounters
) -> Iterator[tuple[Planned, Tensor]]:
    while True:
        asked, fed = time.perf_counter(), feed.seconds
        try:
            views = graph.run()
        except StopIteration:
            if feed.error is not None:
                raise feed.error from None
            return
        finally:
            waited = time.perf_counter() - asked - (feed.seconds - fed)
            counters.decode_wait_s += waited
        done = ahead.popleft()
        counters.in_flight = len(ahead)
        counters.batches += 1
        counters.images += len(done.sample_ids)
        counters.bytes_read += done.samples.num_bytes
        counters.replaced += done.replaced
        given = time.perf_counter()
        yield done, views
        counters.consumer_s += time.perf_counter() - given


class _Feed:
    """The graph's source: first what must be run again, then new plans."""

    def __init__(
        self,
        plans: Iterator[Planned],
        again: deque[Planned],
        ahead: deque[Planned],
        counters: LoaderCounters,
        error: Exception | None,
    ) -> None:
        self._plans, self._again, self._ahead = plans, again, ahead
        self._counters = counters
        self.seconds = 0.0
        self.error = error
        """What ended the plans."""

    def __call__(self) -> tuple[Arrays, ...]:
        started = time.perf_counter()
        try:
            if self.error is not None and not self._again:
                raise self.error
            # The StopIteration of `next` ends the graph behind the last batch.
            planned = self._again.popleft() if self._again else next(self._plans)
        except StopIteration:
            raise
        except Exception as error:  # Raised once the batches before it are delivered.
            self.error = error
            raise StopIteration from error
        finally:
            self.seconds += time.perf_counter() - started
        self._ahead.append(planned)
        return planned.arrays


def undecodable(planned: Planned) -> list[int]:
    """Positions in a failed batch whose image does not decode or has another size than planned.

    DALI names only the first one, by its position.
    """
    payloads = planned.samples.payloads
    misread = set(_misread(planned))
    return [n for n, p in enumerate(payloads) if n in misread or decode_rgb(p.tobytes()) is None]


def _parsed(planned: Planned, repair: Repair) -> Planned:
    """Plan again while the batch holds what DALI would not survive, see `decoded_size`."""
    while misread := _misread(planned):
        error = RuntimeError(f"no image of the planned size at positions {misread} of the batch.")
        planned = repair(planned, error)
    return planned


def _misread(planned: Planned) -> list[int]:
    samples = planned.samples
    sizes = zip(samples.heights.tolist(), samples.widths.tolist(), strict=True)
    pairs = zip(samples.payloads, sizes, strict=True)
    return [n for n, (payload, size) in enumerate(pairs) if decoded_size(payload) != size]
