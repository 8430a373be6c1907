"""Many small calls as Ray tasks: a bounded window, and one bad item harms no other."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

T = TypeVar("T")
R = TypeVar("R")

_TASKS_PER_CPU = 2  # One runs, one waits.


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """One task that ended."""

    position: int
    """Of its item."""
    result: R | None
    """None where it failed."""
    error: Exception | None
    """What the call itself raised, or Ray's own error where its process died."""

    @property
    def crashed(self) -> bool:
        """Whether the process died, by a signal or for want of memory."""
        return isinstance(self.error, WorkerCrashedError | OutOfMemoryError)


def run_tasks(
    call: Callable[[T], R], items: Sequence[T], *, retries: int, retry_on: Sequence[type[Exception]]
) -> Generator[Done[R], None, None]:
    """Call `call(item)` for every item in worker processes; yield in order of completion.

    Tasks still running when the generator is closed (an error, Ctrl-C) are killed.

    Args:
        call: Picklable; gets one item.
        items: Small: paths and settings, never image bytes.
        retries: How often a task whose process dies is tried again.
        retry_on: Exceptions of `call` that are worth a retry too.
    """
    # Wrapped: Ray takes plain functions only. `options`: the types of `remote` know no list.
    task: Any = ray.remote(lambda item: call(item)).options(
        num_cpus=1, max_retries=retries, retry_exceptions=list(retry_on)
    )
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    window = _TASKS_PER_CPU * max(1, int(resources.get("CPU", 1)))
    waiting = iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            for position, item in waiting:
                running[task.remote(item)] = position
                if len(running) >= window:
                    break
            if not running:
                return
            (ref,), _ = ray.wait(list(running))
            yield _collect(ref, running.pop(ref))
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def map_isolated(
    call: Callable[[T], R], items: Sequence[T], *, chunk_size: int
) -> Generator[tuple[int, R | None], None, None]:
    """Call `call` for every item, in chunks; yield (position, result), None for a fatal item.

    A chunk whose process dies twice is run again with one item in each process, so only the item
    that ends its process gets None.

    Raises:
        Exception: What `call` raised.
    """

    def call_all(chunk: Sequence[T]) -> list[R]:
        return [call(item) for item in chunk]

    starts = range(0, len(items), chunk_size)
    chunks = [items[start : start + chunk_size] for start in starts]
    suspects: list[int] = []
    for done in run_tasks(call_all, chunks, retries=1, retry_on=()):
        start = starts[done.position]
        if done.crashed:
            suspects.extend(range(start, start + len(chunks[done.position])))
            continue
        results = _unwrap(done)
        yield from enumerate(results, start)
    singles = [items[position] for position in suspects]
    for one in run_tasks(call, singles, retries=1, retry_on=()):
        yield suspects[one.position], None if one.crashed else _unwrap(one)


def _unwrap(done: Done[R]) -> R:
    if done.error is not None:
        raise done.error
    assert done.result is not None
    return done.result


def _collect(ref: Any, position: int) -> Done[R]:
    try:
        return Done(position, ray.get(ref), None)
    except RayTaskError as error:  # Its own text is a remote traceback.
        cause = error.cause
        return Done(position, None, cause if isinstance(cause, Exception) else error)
    except RayError as error:
        return Done(position, None, error)
