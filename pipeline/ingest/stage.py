"""The shard stage: chunks of the sources into parts, a plan, and shards."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config import ConfigError
from pipeline.ingest.folder import (
    ShardRequest,
    abandon_folder,
    check_place,
    check_started,
    finish_folder,
    finished_manifest,
    remove_others,
    remove_partials,
    require_disk_space,
    start_folder,
)
from pipeline.ingest.parts import PartReport, PartSpec, make_part
from pipeline.ingest.plan import Plan, make_plan
from pipeline.ingest.sources.chunks import list_chunks
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.write import make_shard, shard_specs
from pipeline.lock import lock_folder
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import Ledger, Manifest, add_counts
from pipeline.shards.third_party.indexing import Run
from pipeline.shards.writer import ShardReport

_MAX_NAMED = 5
"""Failures that a message names."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UnfinishedError(RuntimeError):
    """Parts or shards failed, perhaps not because of their inputs; finished ones are kept."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Progress of the stage, in images."""

    phase: Literal["examine", "plan", "write"]
    done: int
    total: int | None
    """None while unknown: some archives must be read first."""
    accepted: int
    quarantined: int
    filtered: int
    duplicate: int
    """0 until the plan is made."""


Progress = Callable[[ShardProgress], None]


def make_shards(job: ShardRequest, run: Run, *, resume: bool, on_progress: Progress) -> Manifest:
    """Turn sources into shards, whose bytes do not depend on `run`.

    Stopped at any moment, it leaves only complete parts and shards, and `resume` continues.

    Args:
        job: What to make, and where.
        run: Executes tasks: `run_here`, or on several processes.
        resume: Whether the folder may hold an earlier run with equal settings.
        on_progress: Called after every part and shard.

    Raises:
        ConfigError: A source or the folder cannot be used, or no image is usable.
        UnfinishedError: Parts or shards failed for another reason; names them.
        OSError: The disk is full.
    """
    check_place(job.out, job.sources)
    chunks = list_chunks(job.sources)
    with lock_folder(job.out):
        check_started(job, resume=resume)
        made = finished_manifest(job, chunks)
        return made or shard_chunks(chunks, job, run, on_progress)


def shard_chunks(
    chunks: Sequence[Chunk], job: ShardRequest, run: Run, on_progress: Progress
) -> Manifest:
    """Make the shards of `chunks`, in any order; the folder must be locked."""
    start_folder(job)
    try:
        require_disk_space(job.out, chunks, job.config)
        num_inputs, specs, dropped = _examine(chunks, job, run, on_progress)
        try:
            plan = make_plan([spec.table_path for spec in specs], num_inputs, job.plan, job.config)
        except ConfigError:
            abandon_folder(job)
            raise
        reports = _write(plan, job, run, on_progress)
        return finish_folder(job, plan, reports, chunks, dropped)
    finally:
        remove_partials(job)


def _examine(
    chunks: Sequence[Chunk], job: ShardRequest, run: Run, on_progress: Progress
) -> tuple[int, list[PartSpec], dict[str, int]]:
    """Make the parts; returns the number of inputs, the parts, and the counts of dropped notes."""
    specs = [PartSpec(job.parts, chunk, job.config) for chunk in chunks]
    remove_others(job, parts=[spec.id for spec in specs])
    known = [chunk.num_inputs for chunk in chunks]
    total = None if None in known else sum(number or 0 for number in known)
    progress = ShardProgress("examine", 0, total, 0, 0, 0, 0)
    names = [f"{spec.chunk.source} {spec.id}" for spec in specs]
    dropped: dict[str, int] = {}
    for report in _run_all(make_part, specs, run, job, ("parts", names)):
        assert isinstance(report, PartReport)
        dropped = add_counts((dropped, report.notes_dropped))
        progress = replace(
            progress,
            done=progress.done + report.inputs,
            accepted=progress.accepted + report.accepted,
            quarantined=progress.quarantined + report.quarantined,
            filtered=progress.filtered + report.filtered,
        )
        on_progress(progress)
    on_progress(replace(progress, phase="plan", total=progress.done))
    return progress.done, specs, dropped


def _write(plan: Plan, job: ShardRequest, run: Run, on_progress: Progress) -> list[ShardReport]:
    specs = shard_specs(plan, job.out, job.parts, job.config)
    names = [spec.stem for spec in specs]
    remove_others(job, shards=names)
    reports: list[ShardReport] = []
    progress = _written(plan.ledger)
    for report in _run_all(make_shard, specs, run, job, ("shards", names)):
        reports.append(report)
        progress = replace(progress, done=progress.done + report.num_samples)
        on_progress(progress)
    return reports


def _written(ledger: Ledger) -> ShardProgress:
    return ShardProgress(
        phase="write",
        done=0,
        total=ledger.accepted,
        accepted=ledger.accepted,
        quarantined=ledger.num_quarantined,
        filtered=ledger.num_filtered,
        duplicate=ledger.duplicate,
    )


@dataclass(slots=True)
class _Failures:
    causes: list[Exception] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def _run_all(
    call: Callable[[Any], Any],
    specs: Sequence[Any],
    run: Run,
    job: ShardRequest,
    named: tuple[str, Sequence[str]],
) -> Iterator[Any]:
    """Yield the results of `call` for `specs`, then raise if any has failed."""
    what, names = named
    failed = _Failures()
    with closing(run(call, specs)) as ended:
        for position, result in ended:
            if not isinstance(result, Exception):
                yield result
                continue
            if isinstance(result, ConfigError | DamageError):
                raise result
            if isinstance(result, OSError) and result.errno in _DISK_FULL:
                raise OSError(result.errno, result.strerror, str(job.out))
            failed.causes.append(result)
            failed.names.append(names[position])
    if failed.causes:
        first = failed.causes[0]
        listed = sorted(failed.names)
        more = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
        raise UnfinishedError(
            f"{len(listed)} of {len(specs)} {what} failed: {', '.join(listed[:_MAX_NAMED])}{more} "
            f"({type(first).__name__}: {first}). "
            "Run the same command again with --resume; what is finished is kept."
        ) from first
