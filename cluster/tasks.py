"""Many small calls as Ray tasks: a bounded window, and one bad item harms no other."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

T = TypeVar("T")
R = TypeVar("R")

_TASKS_PER_CPU = 2  # One runs, one waits.
_END_S, _LOOK_S = 10.0, 0.2


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """One task that ended."""

    position: int
    """Of its item."""
    result: R | None
    """None where it failed."""
    error: Exception | None
    """What the call itself raised, or Ray's own error where its process died."""


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
        end_tasks(list(running))


def end_tasks(refs: list[Any]) -> None:
    """Kill tasks, and see to it that they are: one on its way to a worker outlives a first call."""
    deadline = time.monotonic() + _END_S
    while refs and time.monotonic() < deadline:
        for ref in refs:
            ray.cancel(ref, force=True)
        _, refs = ray.wait(refs, num_returns=len(refs), timeout=_LOOK_S)


def _collect(ref: Any, position: int) -> Done[R]:
    try:
        return Done(position, ray.get(ref), None)
    except RayTaskError as error:  # Its own text is a remote traceback.
        cause = error.cause
        return Done(position, None, cause if isinstance(cause, Exception) else error)
    except RayError as error:
        return Done(position, None, error)
