"""The shard stage: what is a single task in this process, the rest as tasks of Ray."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from cluster.errors import IncompleteError
from cluster.index_shards import run_on_ray
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.parts import close_sandbox
from pipeline.ingest.stage import Progress, UnfinishedError, make_shards
from pipeline.shards.manifest import Manifest
from pipeline.shards.third_party.indexing import run_here


def build_shards(
    job: ShardRequest, *, resume: bool, address: str | None, on_progress: Progress
) -> Manifest:
    """Turn sources into shards; the bytes do not depend on the number of workers.

    Images travel from disk to disk in the workers; only paths and counts pass through Ray. Stopped
    at any moment, it leaves whole parts and shards only, and `resume` goes on.

    Args:
        job: What is made, and where; on a cluster, a folder that all its machines share.
        resume: Whether the folder may hold an earlier run with equal settings.
        address: Of a running Ray cluster; None starts a local Ray where more than one task is due.
        on_progress: Called after every part and shard.

    Raises:
        ConfigError: A source, the folder or the cluster cannot be used as it is, or no image is
            usable.
        IncompleteError: Parts or shards failed for another reason; names them.
    """

    def run(
        call: Callable[[Any], Any], items: Sequence[Any]
    ) -> Generator[tuple[int, Any], None, None]:
        if len(items) <= 1:  # Nothing to share out: a Ray would only have to start.
            return run_here(call, items)
        from cluster.session import ensure_ray  # Ray takes a second to import and more to start.

        ensure_ray(address)
        return run_on_ray(call, items)

    try:
        return make_shards(job, run, resume=resume, on_progress=on_progress)
    except UnfinishedError as error:
        raise IncompleteError(str(error)) from error
    finally:
        close_sandbox()
