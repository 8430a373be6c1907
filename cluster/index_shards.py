"""The index stage: small sets of shards in this process, others as tasks of Ray."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.errors import IncompleteError
from cluster.screen import bar
from pipeline.remote.location import is_remote
from pipeline.shards.third_party.indexing import Indexed, UnreadableError, index_shards, run_here

_RETRIES = 3
_FEW_REMOTE = 4
_SMALL_BYTES = 2**31
"""About what one process scans while a local Ray starts."""


def run_index(
    inputs: Sequence[str], out: Path, console: Console, *, fast: bool, skip_damaged: bool
) -> Indexed:
    """Index shards behind a bar; prints the invariant as the last line.

    Raises:
        ConfigError: An input, `out` or a label cannot be used as it is, or no sample is usable.
        DamageError: Shards are damaged; names all of them.
        IncompleteError: Shards could not be read for another reason; names them.
    """
    with bar(console, "index", counts=True) as line:
        try:
            indexed = index_shards(
                inputs,
                out,
                run_somewhere,
                fast=fast,
                skip_damaged=skip_damaged,
                on_progress=line.update,
            )
        except UnreadableError as error:
            raise IncompleteError(str(error)) from error
    if indexed.num_damaged:
        console.print(f"index: {indexed.num_damaged} damaged shards are left out", highlight=False)
    console.print(indexed.manifest.ledger.describe(), highlight=False)
    return indexed


def run_somewhere(
    call: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """Call `call(item)` for every item: here where they are small, else in tasks of Ray.

    Args:
        call: Gets one item.
        items: Each has the `name` of a shard, a path or a URL.
    """
    is_small = _are_small([item.name for item in items])
    return run_here(call, items) if is_small else run_on_ray(call, items)


def run_on_ray(
    call: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """Call `call(item)` for every item in tasks of Ray, in order of completion.

    Yields:
        Position, and the result or what was raised.
    """
    from cluster.session import ensure_ray  # Ray takes a second to import and more to start.
    from cluster.tasks import run_tasks

    ensure_ray()
    with closing(run_tasks(call, items, retries=_RETRIES, retry_on=[OSError])) as ended:
        for done in ended:
            yield done.position, done.result if done.error is None else done.error


def _are_small(names: Sequence[str]) -> bool:
    if sum(map(is_remote, names)) >= _FEW_REMOTE:
        return False
    local = (Path(name) for name in names if not is_remote(name))
    sizes = (path.stat().st_size for path in local if path.exists())
    return sum(sizes) < _SMALL_BYTES
