"""The shard stage on a Ray cluster: examine every file, plan, write every shard."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import IncompleteError
from cluster.session import ensure_ray
from cluster.tasks import map_isolated, run_tasks
from pipeline.config import ConfigError
from pipeline.crawl.build import ShardReport, ShardSpec, shard_specs, write_shard
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.folder import check_folder, finish_folder, start_folder
from pipeline.crawl.gate import Verdict, examine
from pipeline.crawl.plan import Examined, make_plan
from pipeline.crawl.sources import Source, list_sources
from pipeline.shards.manifest import Ledger, Manifest

_FILES_PER_TASK = 64
_RETRIES = 3


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far the stage is, in images."""

    phase: Literal["examine", "write"]
    done: int
    total: int
    accepted: int
    quarantined: int
    filtered: int
    duplicate: int


def build_shards(
    sources: Sequence[Path],
    out: Path,
    config: ShardConfig,
    *,
    resume: bool,
    on_progress: Callable[[ShardProgress], None],
) -> Manifest:
    """Turn folders of images into shards; the bytes do not depend on the number of workers.

    Images travel from disk to disk in the workers; only paths and counts pass through Ray. Starts
    a local Ray where there is none. Stopped at any moment, it leaves whole shards only, and
    `resume` goes on.

    Raises:
        ConfigError: A source or `out` cannot be used as it is, or no image is usable.
        IncompleteError: Shards failed for another reason; names them.
    """
    inputs = list_sources(sources)
    check_folder(out, sources, config, resume=resume)
    ensure_ray()
    examined = _examine_all(inputs, lambda file: examine(file, config), on_progress)
    plan = make_plan(examined, config)
    specs = shard_specs(plan, out, config)
    start_folder(out, sources, config, specs)
    reports = _write_all(specs, plan.ledger, on_progress)
    return finish_folder(out, sources, config, plan, reports)


def _examine_all(
    inputs: Sequence[Source],
    judge: Callable[[str], Verdict],
    on_progress: Callable[[ShardProgress], None],
) -> list[Examined]:
    examined: list[Examined] = []
    hashes: set[str] = set()
    counts = {"accepted": 0, "quarantined": 0, "filtered": 0, "duplicate": 0}
    files = [source.file for source in inputs]
    with closing(map_isolated(judge, files, chunk_size=_FILES_PER_TASK)) as verdicts:
        for position, found in verdicts:
            verdict = found or Verdict("quarantined", "decoder_crash")
            examined.append(Examined(inputs[position], verdict))
            is_repeat = verdict.outcome == "accepted" and verdict.content_hash in hashes
            hashes.add(verdict.content_hash)
            counts["duplicate" if is_repeat else verdict.outcome] += 1
            if len(examined) % _FILES_PER_TASK == 0 or len(examined) == len(inputs):
                on_progress(ShardProgress("examine", len(examined), len(inputs), **counts))
    return examined


def _write_all(
    specs: Sequence[ShardSpec], ledger: Ledger, on_progress: Callable[[ShardProgress], None]
) -> list[ShardReport]:
    reports: list[ShardReport] = []
    failed: list[str] = []
    causes: list[Exception] = []
    with closing(run_tasks(write_shard, specs, retries=_RETRIES, retry_on=[OSError])) as ended:
        for done in ended:
            if done.result is not None:
                reports.append(done.result)
                on_progress(_write_progress(reports, ledger))
            elif isinstance(done.error, ConfigError):
                raise done.error
            elif done.error is not None:
                failed.append(specs[done.position].stem)
                causes.append(done.error)
    if failed:
        raise IncompleteError(
            f"{len(failed)} of {len(specs)} shards failed: {', '.join(sorted(failed))} "
            f"({type(causes[0]).__name__}: {causes[0]}). "
            "Run the same command again with --resume; finished shards are skipped."
        ) from causes[0]
    return reports


def _write_progress(reports: Sequence[ShardReport], ledger: Ledger) -> ShardProgress:
    return ShardProgress(
        phase="write",
        done=sum(report.num_samples for report in reports),
        total=ledger.accepted,
        accepted=ledger.accepted,
        quarantined=ledger.num_quarantined,
        filtered=ledger.num_filtered,
        duplicate=ledger.duplicate,
    )
