"""The trunks that a transfer compares: random, pretrained, supervised, or of a weights file."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Config, ConfigError, parse
from pipeline.loading.data import DataConfig, open_store
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.pretext.supervised import SupervisedConfig, held_out
from training.metrics import diverged_at, read_metrics
from training.models.trunks import Trunk, TrunkConfig, build_trunk
from training.run_folder import RECORD, TRUNK_FILE, read_record
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.images.pool import contents_of, count_shared
from training.transfer.job import NamedTrunk, TransferTask
from training.transfer.weights import load_trunk

RANDOM_PROTOCOL = (
    "weights drawn by the architecture's own initialisation (He et al. 2015, fan-out, but for "
    "alexnet without BatchNorm and vit_s16), another draw for each seed; BatchNorm with mean 0, "
    "variance 1, scale 1 and shift 0"
)
"""Definition of a random trunk, on which its scores depend more than on anything else."""


def named_trunks(config: TransferConfig, architecture: TrunkConfig, out: Path) -> list[NamedTrunk]:
    """Locate the trunks of a section; each is built once, so that a bad file is refused here.

    Args:
        config: Which trunks.
        architecture: Architecture of all trunks.
        out: Folder of the run, which holds the pretrained trunk.

    Raises:
        ConfigError: Weights are missing, damaged or of another architecture.
    """
    found = []
    for source in config.trunks:
        if source.name == "random":
            drawn = f"random-{_short(architecture.model_dump_json())}-torch-{torch.__version__}"
            fresh = _fresh(architecture, config.view_px)
            found.append(NamedTrunk("random", drawn, fresh, draws_weights=True))
            continue
        path = _weights_of(source, config, out)
        _require_converged(path)
        build = _loaded(architecture, config.view_px, path)
        notes = load_trunk(_fresh(architecture, config.view_px)(0), path)
        found.append(
            NamedTrunk(
                source.name,
                digest_of(path),
                build,
                draws_weights=False,
                weights=str(path),
                notes=tuple(f"trunk {source.name}: {note}" for note in notes),
            )
        )
    return found


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a weights file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights_of(source: TrunkSource, config: TransferConfig, out: Path) -> Path:
    if source.weights is not None:
        return source.weights
    if source.name == "pretrained":
        return config.weights or out / TRUNK_FILE
    if config.supervised is None:
        raise ConfigError(
            "transfer.supervised is missing: the trunk named supervised needs it. Give the folder "
            "of a run with the pretext supervised, or a file of weights."
        )
    given = config.supervised
    return given / TRUNK_FILE if given.is_dir() else given


def _require_converged(path: Path) -> None:
    """Refuse the trunk of a run whose loss was not finite in the end.

    Raises:
        ConfigError: The loss is not finite in the last record beside a run's trunk.
    """
    step = diverged_at(read_metrics(path.parent)) if path.name == TRUNK_FILE else None
    if step is not None:
        raise ConfigError(
            f"run (={path.parent}) diverged: its loss is not finite from step {step} on, so its "
            f"{TRUNK_FILE} is worth no score. Pretrain again with a lower optim.lr or a longer "
            "warmup, or leave this trunk out of transfer.trunks."
        )


def _fresh(architecture: TrunkConfig, view_px: int) -> Callable[[int], Trunk]:
    def build(seed: int) -> Trunk:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_trunk(architecture, use="transfer", view_px=view_px)

    return build


def _loaded(architecture: TrunkConfig, view_px: int, path: Path) -> Callable[[int], Trunk]:
    fresh = _fresh(architecture, view_px)

    def build(seed: int) -> Trunk:
        trunk = fresh(seed)
        load_trunk(trunk, path)
        return trunk

    return build


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _TrainedOn(Config):
    """The sections of a supervised run's YAML that say which labels it has seen."""

    data: DataConfig
    pretext: PretextConfig | None


def supervised_overlap(task: TransferTask, run: Path | None) -> TransferTask:
    """Count the images of the task whose labels a supervised run was trained on.

    They are added to the overlap as "supervised/train" and "supervised/test". For a weights file
    without a run they are unknown, and a note says so.

    Args:
        task: Training and test images.
        run: Folder of the run, or its weights file.
    """
    folder = run if run is not None and run.is_dir() else run.parent if run else None
    if folder is None or not (folder / RECORD).exists():
        note = "what the supervised trunk was trained on is not known: overlap is not counted"
        return replace(task, notes=(*task.notes, note))
    record = read_record(folder)
    sections = {key: record.config.get(key) for key in ("data", "pretext")}
    config = parse(_TrainedOn, sections, str(record.path))
    tasks = tasks_of(config.pretext) if config.pretext else ()
    shares = [one.holdout for one in tasks if isinstance(one, SupervisedConfig)]
    seen = []
    for one in config.data.sets:
        store = open_store(one.manifest, config.data.cache)
        taught = store.labels() >= 0
        for share in shares:
            taught &= ~held_out(store.keys(), share)
        seen.append(contents_of(store, np.flatnonzero(taught)))
    overlap = dict(task.overlap)
    for side, images in (("train", task.train), ("test", task.test)):
        theirs = contents_of(images.store, images.sample_ids)
        overlap[f"supervised/{side}"] = sum(count_shared(one, theirs) for one in seen)
    return replace(task, overlap=overlap)
