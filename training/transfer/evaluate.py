"""The transfer stage: every job on every trunk, on the same images."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pipeline.config import ConfigError
from pipeline.loading.data import open_store
from training.models.trunks import require_view
from training.run_folder import RECORD, TRANSFER_FOLDER, versions, write_record
from training.transfer.config import FROZEN, Job, TransferConfig, TransferRun
from training.transfer.frozen.features import fingerprint_of, frozen_features
from training.transfer.frozen.retrieval import PICTURE_FILE, RetrievalConfig, draw_neighbours
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.split import SplitRule
from training.transfer.job import NamedTrunk, Progress, Score, Setting
from training.transfer.jobs import run_job
from training.transfer.record import (
    entry_of,
    part_file,
    read_part,
    summarize,
    uneven,
    write_job,
    write_part,
    write_summary,
    write_table,
)
from training.transfer.trunks import RANDOM_PROTOCOL, named_trunks, supervised_overlap

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Of what is kept of a finished job; another one is not read."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A transfer whose images and trunks are at hand."""

    run: TransferRun
    config: TransferConfig
    setting: Setting
    trunks: Sequence[NamedTrunk]

    @property
    def parts(self) -> tuple["JobOnTrunk", ...]:
        """Each job on each trunk, a trunk's jobs in a row."""
        return tuple(
            JobOnTrunk(job.name, trunk.name)
            for trunk in self.trunks
            for job in self.config.all_jobs
        )

    def parts_on(self, trunk: str) -> tuple["JobOnTrunk", ...]:
        """Return the parts of one trunk."""
        return tuple(part for part in self.parts if part.trunk == trunk)

    def is_frozen(self, part: "JobOnTrunk") -> bool:
        """Whether a part looks at frozen features."""
        return isinstance(self.job(part.job), FROZEN)

    def job(self, name: str) -> Job:
        """Return the job of a name."""
        return next(job for job in self.config.all_jobs if job.name == name)

    def trunk(self, name: str) -> NamedTrunk:
        """Return the trunk of a name."""
        return next(trunk for trunk in self.trunks if trunk.name == name)

    def key(self, part: "JobOnTrunk") -> str:
        """Name all that the scores of a part depend on."""
        task, trunk = self.setting.task, self.trunk(part.trunk)
        depends = {
            "format": _FORMAT,
            "job": self.job(part.job).model_dump(mode="json"),
            "weights": trunk.digest,
            "images": [fingerprint_of(task.train), fingerprint_of(task.test)],
            "seeds": list(self.setting.seeds),
            "view_px": self.setting.view_px,
            "precision": self.setting.precision,
        }
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()

    def finished(self, part: "JobOnTrunk") -> list[Score] | None:
        """Return the scores of a part that was finished before."""
        return read_part(part_file(self.run.out, part.job, part.trunk), self.key(part))


@dataclass(frozen=True, slots=True)
class JobOnTrunk:
    """One job on one trunk: what is run, kept, and run again by itself."""

    job: str
    trunk: str

    def __str__(self) -> str:
        return f"{self.job} on {self.trunk}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transfer."""

    entries: list[dict[str, Any]]
    """Results, best layers and others, in the order of jobs and trunks."""
    summary: dict[str, Any] | None
    """transfer.json; None where the job svm is not among the finished ones."""
    failures: Mapping[str, Exception] = field(default_factory=dict)
    """By the name of the part."""
    overlap: Mapping[str, int] = field(default_factory=dict)
    """As that of the task."""
    notes: tuple[str, ...] = ()
    """What was left out or odd about the images, a line each."""


def open_transfer(
    config: TransferRun,
    device: torch.device,
    on_progress: Progress = lambda what, done, total: None,
) -> Opened:
    """Open images and trunks of a run's transfer section.

    Raises:
        ConfigError: There is no such section, no labels, no weights, or views that the trunk can
            not see.
    """
    if config.transfer is None:
        raise ConfigError("transfer is missing: this stage needs that section of the config.")
    chosen = config.transfer
    require_view(config.trunk, chosen.view_px, key="transfer.view_px", use="transfer")
    pretrain = (
        open_store(config.data.first_manifest, config.data.cache) if _has_own(config) else None
    )
    task = open_task(
        chosen.location or config.data.first_manifest,
        options=_options(config),
        pretrain=pretrain,
        folder=config.out / TRANSFER_FOLDER,
        on_progress=on_progress,
    )
    if any(source.name == "supervised" for source in chosen.trunks):
        task = supervised_overlap(task, chosen.supervised)
    trunks = named_trunks(chosen, config.trunk, config.out)
    setting = Setting(
        task=task,
        device=device,
        view_px=chosen.view_px,
        seeds=chosen.seeds or (config.seed,),
        batch=chosen.batch,
        threads=chosen.threads,
        precision=chosen.precision,
        folder=config.out / TRANSFER_FOLDER,
    )
    return Opened(config, chosen, setting, trunks)


def here() -> torch.device:
    """Return the device that this process runs jobs on."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def transfer(config: TransferRun, device: torch.device, on_progress: Progress) -> Outcome:
    """Run every job on every trunk in this process, in turn; parts that are finished are skipped.

    A part that fails keeps no other from running.

    Raises:
        ConfigError: As `open_transfer` does.
    """
    opened = open_transfer(config, device, on_progress)
    failures: dict[str, Exception] = {}

    def attempt(name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:  # Whatever it is, the other jobs are still worth running.
            logger.exception("%s failed", name)
            failures[name] = error
            return False
        return True

    for trunk in opened.trunks:
        extract = partial(make_features, opened, trunk.name, on_progress)
        extracted = attempt(f"features of {trunk.name}", extract)
        for part in opened.parts_on(trunk.name):
            if extracted or not opened.is_frozen(part):
                attempt(str(part), partial(run_part, opened, part, on_progress))
    return finish(opened, failures)


def make_features(opened: Opened, trunk: str, on_progress: Progress) -> None:
    """Extract at once what all unfinished jobs on a trunk need of frozen features."""
    waiting = (part for part in opened.parts_on(trunk) if opened.finished(part) is None)
    jobs = [job for job in (opened.job(part.job) for part in waiting) if isinstance(job, FROZEN)]
    multi_label = opened.setting.task.train.is_multi_label
    poolings = {p: None for job in jobs for p in job.poolings(multi_label=multi_label)}
    named = opened.trunk(trunk)
    seeds = opened.setting.seeds if named.draws_weights else opened.setting.seeds[:1]
    for seed in seeds if poolings else ():
        frozen_features(opened.setting, named, seed, tuple(poolings), on_progress)


def run_part(opened: Opened, part: JobOnTrunk, on_progress: Progress) -> None:
    """Run one job on one trunk and keep its scores, but where they are kept already."""
    if opened.finished(part) is None:
        scores = run_job(
            opened.job(part.job), opened.setting, opened.trunk(part.trunk), on_progress
        )
        write_part(part_file(opened.run.out, part.job, part.trunk), opened.key(part), scores)


def finish(opened: Opened, failures: Mapping[str, Exception]) -> Outcome:
    """Collect the finished parts into OUT/transfer/JOB.json, OUT/results.csv, OUT/transfer.json."""
    out, task = opened.run.out, opened.setting.task
    about = _about(opened)
    entries = []
    notes = list(task.notes)
    for job in opened.config.all_jobs:
        scores = {
            t.name: opened.finished(JobOnTrunk(job.name, t.name)) or [] for t in opened.trunks
        }
        ours = [entry_of(score, task) for found in scores.values() for score in found]
        if not ours:
            continue
        entries += ours
        odd = uneven(job.name, [score for found in scores.values() for score in found])
        notes += odd
        write_job(out, job, ours, about | {"notes": [*task.notes, *odd]})
        if isinstance(job, RetrievalConfig):
            shown = {name: d for name, found in scores.items() for d in _pictured(found)}
            draw_neighbours(task, shown, out / TRANSFER_FOLDER / PICTURE_FILE)
    write_table(out, entries)
    write_record(out / TRANSFER_FOLDER / RECORD, opened.run.model_dump(mode="json"))
    summary = summarize(entries, task, opened.config, about)
    if summary:
        write_summary(out, summary)
    return Outcome(entries, summary, failures, task.overlap, tuple(notes))


def _pictured(scores: Sequence[Score]) -> Iterator[dict[str, Any]]:
    return (score.details for score in scores if "queries" in score.details)


def _about(opened: Opened) -> dict[str, Any]:
    """Return what tells one transfer from another."""
    task = opened.setting.task
    return {
        "seed": opened.run.seed,
        "seeds": list(opened.setting.seeds),
        "fingerprint": task.train.store.manifest.fingerprint,
        "images": {"train": fingerprint_of(task.train), "test": fingerprint_of(task.test)},
        "weights": {trunk.name: trunk.digest for trunk in opened.trunks},
        "random_trunk": RANDOM_PROTOCOL,
        "view_px": opened.setting.view_px,
        "precision": opened.setting.precision,
        "notes": list(task.notes),
        "versions": versions(),
    }


def _has_own(config: TransferRun) -> bool:
    """Whether the pretraining's images are known: those of a stream are not."""
    return bool(config.data.sets)


def _options(config: TransferRun) -> TaskOptions:
    assert config.transfer is not None
    chosen = config.transfer
    rule = SplitRule(
        test_share=chosen.test_share,
        train_per_class=chosen.train_per_class,
        test_per_class=chosen.test_per_class,
        max_train=chosen.max_train,
        max_test=chosen.max_test,
        folds=chosen.folds,
    )
    return TaskOptions(
        rule=rule,
        train_set=chosen.train_set,
        test_set=chosen.test_set,
        cache=config.data.cache,
    )
