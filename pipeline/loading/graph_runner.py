"""Plan views and run them through a graph that works ahead; rebuild it where an image fails."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dali.decode import decoded_size
from pipeline.dali.graph import Arrays, Feed, Graph
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, draw_foreign
from pipeline.pretext.multitask import PretextConfig, Task, plan_task, tasks_of
from pipeline.pretext.plan import TilePlan
from pipeline.pretext.supervised import SupervisedConfig, taught_classes
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Samples


@dataclass(slots=True)
class LoaderCounters:
    """Sums since the loader was made, of one rank; times in seconds of the consumer's thread."""

    images: int = 0
    batches: int = 0
    bytes_read: int = 0
    """Bytes of encoded images."""
    replaced: int = 0
    """Samples that replaced a damaged one."""
    rebuilds: int = 0
    """Graphs rebuilt because an image did not decode."""
    plan_s: float = 0.0
    """Order, draws and plans."""
    read_s: float = 0.0
    """Opening shards, hashing payloads; waiting for remote shards."""
    decode_wait_s: float = 0.0
    """Waiting for the graph. Near zero: decoding keeps up, and the consumer is the limit."""
    consumer_s: float = 0.0
    """Time between two requests that the consumer spent elsewhere."""
    in_flight: int = 0
    """Batches planned but not yet taken, now."""

    def since(self, before: "LoaderCounters") -> "LoaderCounters":
        """Return the difference to an earlier copy; `in_flight` is a level and stays."""
        names = [field.name for field in fields(self) if field.name != "in_flight"]
        deltas = {name: getattr(self, name) - getattr(before, name) for name in names}
        return LoaderCounters(**deltas, in_flight=self.in_flight)

    def copy(self) -> "LoaderCounters":
        """Return a copy that later counts do not change."""
        return LoaderCounters(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step, or one batch of an evaluation."""

    epoch: int
    step: int
    sample_ids: NDArray[np.int64]
    """(B,)."""
    views: Tensor
    """uint8, batch first, as the graph emits them, on the graph's device."""
    labels: NDArray[np.int64]
    """(B, ...): what the pretext asks, or the class numbers in an evaluation."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch before its pixels exist."""

    epoch: int
    step: int
    sample_ids: NDArray[np.int64]
    """(B,), whose bytes are read."""
    replaced: int
    """How many of them replaced a damaged sample."""
    samples: Samples
    labels: NDArray[np.int64]
    tasks: tuple[TilePlan, ...]
    """What was drawn for each task of the pretext; none in an evaluation."""
    arrays: tuple[Arrays, ...]
    """What the graph is fed."""
    purged: int = 0
    """How many of them replaced a purged sample."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A batch that holds images without views."""

    planned: PlannedBatch
    positions: tuple[int, ...]
    """Rows of those images, at least one."""
    lasting: bool
    """Whether no view of them can ever be made; else only this one was tried."""


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What a batch asks, and what its graph is fed."""

    labels: NDArray[np.int64]
    """(B, L), those of all tasks side by side; each task says what they mean."""
    tasks: tuple[TilePlan, ...]
    """Plan of each task."""
    arrays: tuple[Arrays, ...]
    """Inputs of the graph, in order."""


def plan_views(
    pretext: PretextConfig, samples: Samples, draws: Draws, mates: NDArray[np.int64]
) -> ViewPlan:
    """Draw the views of a batch, and what is asked of them; `mates` as `Mixture.mates` says."""
    tasks = tasks_of(pretext)
    plans = [_plan_samples(task, samples, draws) for task in tasks]
    arrays = [array for plan in plans for array in plan.arrays()]
    labels = [
        np.concatenate([plan.labels, _foreign(task, draws, mates)], axis=1)
        for task, plan in zip(tasks, plans, strict=True)
    ]
    return ViewPlan(np.concatenate(labels, axis=1), tuple(plans), (samples.payloads, *arrays))


def _plan_samples(task: Task, samples: Samples, draws: Draws) -> TilePlan:
    plan = plan_task(task, samples.heights, samples.widths, draws)
    if not isinstance(task, SupervisedConfig):
        return plan
    return replace(plan, labels=taught_classes(task, samples.keys, samples.labels))


def _foreign(task: Task, draws: Draws, mates: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(task, JigsawConfig) and task.max_foreign_tiles:
        return draw_foreign(task, draws, mates)
    return np.empty((len(mates), 0), np.int64)


Repair = Callable[[Failure], PlannedBatch]


def run_plans(
    plans: Iterator[PlannedBatch],
    build: Callable[[Feed], Graph],
    repair: Repair,
    counters: LoaderCounters,
) -> Iterator[tuple[PlannedBatch, Tensor]]:
    """Yield each plan with its views, in order.

    A graph whose batch fails is discarded: what it still held is fed to a new one, the failed
    batch first, as `repair` returns it. An error of `plans` is raised after the last good batch.
    """
    plans = (_parsed(planned, repair) for planned in plans)
    again: deque[PlannedBatch] = deque()
    pending: Exception | None = None
    while True:
        ahead: deque[PlannedBatch] = deque()
        feed = _Feed(plans, again, ahead, counters, pending)
        graph = build(feed)
        try:
            yield from _run(graph, feed, ahead, counters)
        except RuntimeError as error:
            if error is feed.error or not ahead:
                raise
            pending = feed.error  # Of a later plan: the batch that failed is to be named first.
            first, *rest = ahead
            failure = Failure(first, _failing(first, build, error), lasting=False)
            again.extendleft(reversed([_parsed(repair(failure), repair), *rest]))
            counters.rebuilds += 1
        else:
            return


def _run(
    graph: Graph, feed: "_Feed", ahead: deque[PlannedBatch], counters: LoaderCounters
) -> Iterator[tuple[PlannedBatch, Tensor]]:
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
    """Source of the graph: batches to run again first, then new plans."""

    def __init__(
        self,
        plans: Iterator[PlannedBatch],
        again: deque[PlannedBatch],
        ahead: deque[PlannedBatch],
        counters: LoaderCounters,
        error: Exception | None,
    ) -> None:
        self._plans, self._again, self._ahead = plans, again, ahead
        self._counters = counters
        self.seconds = 0.0
        self.error = error
        """Error that ended the plans."""

    def __call__(self) -> tuple[Arrays, ...]:
        started = time.perf_counter()
        try:
            if self.error is not None and not self._again:
                raise self.error
            # The StopIteration of `next` ends the graph after the last batch.
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


def _failing(
    planned: PlannedBatch, build: Callable[[Feed], Graph], error: Exception
) -> tuple[int, ...]:
    """Find the images of a failed batch that have no view, by the graph itself, one by one.

    Only a part of an image is decoded, and whether that part is whole must not depend on what else
    is in a batch.

    Raises:
        DamageError: Each image alone has a view: the graph failed for another reason.
    """
    failing, next_one, batch = [], 0, len(planned.sample_ids)
    while next_one < batch:
        graph = build(_one_by_one(planned, next_one))
        try:
            while next_one < batch:
                graph.run()
                next_one += 1
        except RuntimeError:
            failing.append(next_one)
            next_one += 1
    if not failing:
        position = f"epoch {planned.epoch}, step {planned.step}"
        raise DamageError(f"the graph failed at {position}: {error}") from error
    return tuple(failing)


def _one_by_one(planned: PlannedBatch, first: int) -> Feed:
    batches = (
        tuple(array[n : n + 1] for array in planned.arrays)
        for n in range(first, len(planned.sample_ids))
    )
    return lambda: next(batches)


def _parsed(planned: PlannedBatch, repair: Repair) -> PlannedBatch:
    """Plan again while the batch holds what DALI would not survive, see `decoded_size`."""
    while misread := _misread(planned):
        planned = repair(Failure(planned, tuple(misread), lasting=True))
    return planned


def _misread(planned: PlannedBatch) -> list[int]:
    samples = planned.samples
    sizes = zip(samples.heights.tolist(), samples.widths.tolist(), strict=True)
    pairs = zip(samples.payloads, sizes, strict=True)
    return [n for n, (payload, size) in enumerate(pairs) if decoded_size(payload) != size]
