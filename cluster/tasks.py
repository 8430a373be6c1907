"""Many small calls, here or as Ray tasks: a bounded window, and one bad item harms no other."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.remote.location import is_remote

# Ray is imported by the functions that use it: it takes a second, and few items do without it.

T = TypeVar("T")
R = TypeVar("R")

_TASKS_PER_CPU = 2  # One runs, one waits.
_END_S, _LOOK_S = 10.0, 0.2
_RETRIES = 3
_FEW_REMOTE = 4
_SMALL_BYTES = 2**31
"""About what one process scans while a local Ray starts."""


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """A finished task."""

    position: int
    """Position of its item."""
    result: R | None
    """None if it failed."""
    error: Exception | None
    """What the call itself raised, or Ray's own error if its process died."""


def run_somewhere(
    call: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """Call `call(item)` for every item: in this process if they are small, else in Ray tasks.

    Args:
        call: Gets one item.
        items: Each has the `name` of a shard, a path or a URL.
    """
    from pipeline.shards.third_party.indexing import run_here

    is_small = _are_small([item.name for item in items])
    return run_here(call, items) if is_small else run_on_ray(call, items)


def run_on_ray(
    call: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """Call `call(item)` for every item in Ray tasks, in order of completion.

    Yields:
        Position, and the result or what was raised.
    """
    from cluster.session import ensure_ray

    ensure_ray()
    with closing(run_tasks(call, items, retries=_RETRIES, retry_on=[OSError])) as finished:
        for done in finished:
            yield done.position, done.result if done.error is None else done.error


def run_tasks(
    call: Callable[[T], R], items: Sequence[T], *, retries: int, retry_on: Sequence[type[Exception]]
) -> Generator[Done[R], None, None]:
    """Call `call(item)` for every item in worker processes; yield in order of completion.

    Tasks still running when the generator is closed (an error, Ctrl-C) are killed.

    Args:
        call: Picklable; gets one item.
        items: Small: paths and settings, never image bytes.
        retries: Retries of a task whose process died.
        retry_on: Exceptions of `call` that are retried, too.
    """
    import ray

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
            yield collect(ref, running.pop(ref))
    finally:
        end_tasks(list(running))


def end_tasks(refs: list[Any]) -> None:
    """Kill tasks until they are gone: one on its way to a worker survives the first call."""
    import ray

    deadline = time.monotonic() + _END_S
    while refs and time.monotonic() < deadline:
        for ref in refs:
            ray.cancel(ref, force=True)
        _, refs = ray.wait(refs, num_returns=len(refs), timeout=_LOOK_S)


def collect(ref: Any, position: int) -> Done[Any]:
    """Return what a finished task returned or raised."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return Done(position, ray.get(ref), None)
    except RayTaskError as error:  # Its own text is a remote traceback.
        cause = error.cause
        return Done(position, None, cause if isinstance(cause, Exception) else error)
    except RayError as error:
        return Done(position, None, error)


def _are_small(names: Sequence[str]) -> bool:
    if sum(map(is_remote, names)) >= _FEW_REMOTE:
        return False
    local = (Path(name) for name in names if not is_remote(name))
    sizes = (path.stat().st_size for path in local if path.exists())
    return sum(sizes) < _SMALL_BYTES
