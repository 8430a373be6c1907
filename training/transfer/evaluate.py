"""The transfer stage: every job on every trunk, on the same images."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from typing_extensions import assert_never

from pipeline.config import ConfigError
from pipeline.loading.data import open_store
from training.models.trunks import require_view
from training.run_folder import RECORD, TRANSFER_FOLDER, versions, write_record
from training.transfer.config import FROZEN, Job, TransferConfig, TransferRun
from training.transfer.dense.detection import DetectionConfig, run_detection
from training.transfer.dense.segmentation import SegmentationConfig, run_segmentation
from training.transfer.frozen.features import fingerprint_of, frozen_features
from training.transfer.frozen.knn import KnnConfig, run_knn
from training.transfer.frozen.linear import LinearConfig, run_linear
from training.transfer.frozen.low_shot import LowShotConfig, run_low_shot
from training.transfer.frozen.retrieval import (
    PICTURE_FILE,
    RetrievalConfig,
    draw_neighbours,
    run_retrieval,
)
from training.transfer.frozen.svm import SvmConfig, run_svm
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule
from training.transfer.job import (
    NamedTrunk,
    NotFiniteError,
    Progress,
    Score,
    Setting,
    require_finite,
    seeds_of,
)
from training.transfer.record import (
    entry_of,
    pair_file,
    read_pair,
    summarize,
    uneven,
    write_job,
    write_pair,
    write_summary,
    write_table,
)
from training.transfer.trunks import RANDOM_PROTOCOL, named_trunks, supervised_overlap
from training.transfer.tuned.finetune import FinetuneConfig, run_finetune
from training.transfer.tuned.lock import LockConfig, run_lock

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Version of the files of finished pairs; other versions are not read."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A transfer with its images and trunks open."""

    run: TransferRun
    config: TransferConfig
    setting: Setting
    trunks: Sequence[NamedTrunk]

    @property
    def pairs(self) -> tuple["JobOnTrunk", ...]:
        """Each job on each trunk, the jobs of a trunk adjacent."""
        return tuple(
            JobOnTrunk(job.name, trunk.name) for trunk in self.trunks for job in self.config.jobs
        )

    def pairs_on(self, trunk: str) -> tuple["JobOnTrunk", ...]:
        """Return the pairs of one trunk."""
        return tuple(pair for pair in self.pairs if pair.trunk == trunk)

    def is_frozen(self, pair: "JobOnTrunk") -> bool:
        """Whether the job of a pair reads frozen features."""
        return isinstance(self.job(pair.job), FROZEN)

    def job(self, name: str) -> Job:
        """Return the job of this name."""
        return next(job for job in self.config.jobs if job.name == name)

    def trunk(self, name: str) -> NamedTrunk:
        """Return the trunk of this name."""
        return next(trunk for trunk in self.trunks if trunk.name == name)

    def key(self, pair: "JobOnTrunk") -> str:
        """Hash all that the scores of a pair depend on."""
        task, trunk = self.setting.task, self.trunk(pair.trunk)
        depends = {
            "format": _FORMAT,
            "job": self.job(pair.job).model_dump(mode="json"),
            "weights": trunk.digest,
            "images": [fingerprint_of(task.train), fingerprint_of(task.test)],
            "seeds": list(self.setting.seeds),
            "view_px": self.setting.view_px,
            "precision": self.setting.precision,
        }
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()

    def finished(self, pair: "JobOnTrunk") -> list[Score] | None:
        """Return the scores of a pair that is finished, else None."""
        return read_pair(pair_file(self.run.out, pair.job, pair.trunk), self.key(pair))


@dataclass(frozen=True, slots=True)
class JobOnTrunk:
    """One job on one trunk: the unit that is run, stored, and retried."""

    job: str
    trunk: str

    def __str__(self) -> str:
        return f"{self.job} on {self.trunk}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a transfer."""

    entries: list[dict[str, Any]]
    """Results of all layers, in the order of jobs and trunks."""
    summary: dict[str, Any] | None
    """Content of transfer.json; None where the job svm is not finished."""
    failures: Mapping[str, Exception] = field(default_factory=dict)
    """Errors by the name of the pair."""
    overlap: Mapping[str, int] = field(default_factory=dict)
    """Overlap of the task's images."""
    notes: tuple[str, ...] = ()
    """Exclusions and oddities of the images, one line each."""


def open_transfer(
    config: TransferRun,
    device: torch.device,
    on_progress: Progress = lambda what, done, total: None,
) -> Opened:
    """Open images and trunks of a run's transfer section.

    Raises:
        ConfigError: There is no such section, no labels, no weights, or the trunk does not support
            the view size.
    """
    if config.transfer is None:
        raise ConfigError("transfer is missing: this stage needs that section of the config.")
    chosen = config.transfer
    require_view(config.trunk, chosen.view_px, key="transfer.view_px", use="transfer")
    pretrain = (
        open_store(config.data.first_manifest, config.data.cache) if _has_own(config) else None
    )
    task = open_task(
        chosen.data or config.data.first_manifest,
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
    """Run every job on every trunk in this process, in turn; finished pairs are skipped.

    A failed pair does not keep the others from running.

    Raises:
        ConfigError: As `open_transfer` does.
    """
    opened = open_transfer(config, device, on_progress)
    failures: dict[str, Exception] = {}

    def attempt(name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:  # Whatever it is, the other jobs are worth running.
            logger.exception("%s failed", name)
            failures[name] = error
            return False
        return True

    for trunk in opened.trunks:
        extract = partial(make_features, opened, trunk.name, on_progress)
        extracted = attempt(f"features of {trunk.name}", extract)
        for pair in opened.pairs_on(trunk.name):
            if extracted or not opened.is_frozen(pair):
                attempt(str(pair), partial(run_pair, opened, pair, on_progress))
    return finish(opened, failures)


def make_features(opened: Opened, trunk: str, on_progress: Progress) -> None:
    """Extract in one go the frozen features that all unfinished jobs on a trunk need."""
    waiting = (pair for pair in opened.pairs_on(trunk) if opened.finished(pair) is None)
    jobs = [job for job in (opened.job(pair.job) for pair in waiting) if isinstance(job, FROZEN)]
    multi_label = opened.setting.task.train.is_multi_label
    poolings = {p: None for job in jobs for p in job.poolings(multi_label=multi_label)}
    named = opened.trunk(trunk)
    with _finite(named):
        for seed in seeds_of(named, opened.setting.seeds) if poolings else ():
            frozen_features(opened.setting, named, seed, tuple(poolings), on_progress)


def run_pair(opened: Opened, pair: JobOnTrunk, on_progress: Progress) -> None:
    """Run one job on one trunk and store its scores, unless it is finished."""
    if opened.finished(pair) is None:
        job, trunk = opened.job(pair.job), opened.trunk(pair.trunk)
        with _finite(trunk):
            scores = _run_job(job, opened.setting, trunk, on_progress)
            for score in scores:
                layer = f" of layer {score.layer}" if score.layer else ""
                require_finite(f"the scores{layer}", np.array(score.scores))
        write_pair(pair_file(opened.run.out, pair.job, pair.trunk), opened.key(pair), scores)


@contextmanager
def _finite(trunk: NamedTrunk) -> Iterator[None]:
    """Name the trunk and its file where its numbers are not finite.

    Raises:
        ConfigError: They are not.
    """
    try:
        yield
    except NotFiniteError as error:
        file = f" of weights (={trunk.weights})" if trunk.weights else ""
        raise ConfigError(
            f"trunk (={trunk.name}){file}: {error}: no score is given. Give weights of a training "
            "that converged; where the job trains, lower its lr."
        ) from None


def _run_job(job: Job, setting: Setting, trunk: NamedTrunk, on_progress: Progress) -> list[Score]:
    """Run a job on a trunk; it writes files only below the setting's folder."""
    match job:
        case SvmConfig() | LowShotConfig() | KnnConfig() | RetrievalConfig():
            return _run_frozen(job, setting, trunk, on_progress)
        case LinearConfig():
            return run_linear(job, setting, trunk, on_progress)
        case FinetuneConfig():
            return run_finetune(job, setting, trunk, on_progress)
        case LockConfig():
            return run_lock(job, setting, trunk, on_progress)
        case DetectionConfig():
            return run_detection(job, setting, trunk, on_progress)
        case SegmentationConfig():
            return run_segmentation(job, setting, trunk, on_progress)
        case _:
            assert_never(job)


def _run_frozen(
    job: SvmConfig | LowShotConfig | KnnConfig | RetrievalConfig,
    setting: Setting,
    trunk: NamedTrunk,
    on_progress: Progress,
) -> list[Score]:
    match job:
        case SvmConfig():
            return run_svm(job, setting, trunk, on_progress)
        case LowShotConfig():
            return run_low_shot(job, setting, trunk, on_progress)
        case KnnConfig():
            return run_knn(job, setting, trunk, on_progress)
        case RetrievalConfig():
            return run_retrieval(job, setting, trunk, on_progress)
        case _:
            assert_never(job)


def finish(opened: Opened, failures: Mapping[str, Exception]) -> Outcome:
    """Collect the finished pairs into OUT/transfer/JOB.json, OUT/results.csv, OUT/transfer.json."""
    out, task = opened.run.out, opened.setting.task
    about = _about(opened)
    entries = []
    notes = list(about["notes"])
    for job in opened.config.jobs:
        scores = {
            t.name: opened.finished(JobOnTrunk(job.name, t.name)) or [] for t in opened.trunks
        }
        ours = [entry_of(score, task) for found in scores.values() for score in found]
        if not ours:
            continue
        entries += ours
        odd = uneven(job.name, [score for found in scores.values() for score in found])
        notes += odd
        write_job(out, job, ours, about | {"notes": [*about["notes"], *odd]})
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
    """Return what identifies a transfer."""
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
        "notes": [*task.notes, *(note for t in opened.trunks for note in t.notes)],
        "versions": versions(),
    }


def _has_own(config: TransferRun) -> bool:
    """Whether the pretraining's images are known; those of a stream are not."""
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
