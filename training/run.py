"""The configuration of a run: its schema, and what may change when the run is resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config, ConfigError, parse
from pipeline.loading.data import DataConfig, with_classes
from pipeline.loading.order import OrderConfig
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.remote.location import is_remote
from training.faults import ENDED_FILE, STOP_FILE
from training.models.trunks import TrunkConfig, require_view
from training.optimizer import OptimConfig
from training.precision import Precision
from training.run_folder import RECORD, read_record, write_record
from training.transfer.config import TransferRun

_MAY_CHANGE = (
    "out",
    "data.",  # The loader compares fingerprints: shards may have moved, not changed.
    "train.workers",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoint_keep",
    "train.checkpoint_keep_every",
    "train.max_bad_steps",
    "train.max_rollbacks",
    "train.rollback_lr_scale",
    "train.max_failures",
    "train.compile",
    "transfer",
)
"""Keys that may differ when a run is resumed: they change no sample and no view."""


class TrainConfig(Config):
    """Length, processes and precision of a pretraining."""

    epochs: int = Field(gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this much training time even if epochs remain; the learning rate follows
    whichever limit is nearer. A run that stops this way is not reproducible bit for bit."""
    workers: int = Field(1, gt=0)
    """Processes under Ray, one GPU each if the cluster has GPUs; at most order.num_lanes."""
    max_failures: int = Field(0, ge=0)
    """Restarts from the newest checkpoint under Ray before the run is given up."""
    precision: Precision = "auto"
    """Precision of the forward pass; auto uses bf16 where the hardware supports it. Weights stay
    in fp32."""
    compile: bool = False
    """Compile the model with torch.compile: a minute or more at the start, faster steps after it.
    Sums are taken in another order, so losses differ in their last digits."""
    log_every: int = Field(20, gt=0)
    """Steps between records."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    checkpoint_keep: int = Field(2, gt=0)
    """How many of the newest checkpoints are kept."""
    checkpoint_keep_every: int | None = Field(None, gt=0)
    """Checkpoints of steps that are a multiple of this are kept for good."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale a gradient with a larger norm, over all weights, down to this norm."""
    max_bad_steps: int = Field(3, gt=0)
    """A step whose loss or gradient is not finite on any rank is skipped on all. After this many
    in a row the run goes back to the newest checkpoint."""
    max_rollbacks: int = Field(2, ge=0)
    """How often it goes back before it is given up."""
    rollback_lr_scale: float = Field(0.5, gt=0, le=1)
    """Factor on the learning rate each time it goes back."""


class RunConfig(TransferRun):
    """The YAML of pretrain, transfer and submit."""

    order: OrderConfig | None = None
    pretext: PretextConfig | None = None
    optim: OptimConfig | None = None
    train: TrainConfig | None = None


@dataclass(frozen=True, slots=True)
class Pretraining:
    """The sections of a run that pretraining needs, none of them missing."""

    out: Path
    seed: int
    data: DataConfig
    trunk: TrunkConfig
    order: OrderConfig
    pretext: PretextConfig
    optim: OptimConfig
    train: TrainConfig


def pretraining_of(config: RunConfig) -> Pretraining:
    """Return what pretraining needs.

    Raises:
        ConfigError: A section is missing, the views of the pretext do not suit the trunk, or the
            pretext asks for classes that the shards do not have.
    """
    for name in ("order", "pretext", "optim", "train"):
        if getattr(config, name) is None:
            raise ConfigError(f"{name} is missing: pretraining needs this section of the config.")
    assert config.order is not None
    assert config.pretext is not None
    assert config.optim is not None
    assert config.train is not None
    for task in tasks_of(config.pretext):
        key = f"{task.name} {task.side_key}"
        require_view(config.trunk, task.tiles.tile_px, key=key, use="pretext")
    return Pretraining(
        out=config.out,
        seed=config.seed,
        data=config.data,
        trunk=config.trunk,
        order=config.order,
        pretext=with_classes(config.pretext, config.data),
        optim=config.optim,
        train=config.train,
    )


def open_run(config: RunConfig, *, resume: bool) -> None:
    """Make the run's folder and record in it what is needed to repeat the run.

    Raises:
        ConfigError: The folder holds a run and `resume` is false, or it holds a different run.
    """
    record = config.out / RECORD
    raw = config.model_dump(mode="json")
    if not record.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        write_record(record, raw)
    elif not resume:
        raise ConfigError(
            f"out (={config.out}) holds a run; use --resume to go on or choose another folder."
        )
    else:
        _refuse_other(read_record(config.out).config, raw, record)
    for name in (STOP_FILE, ENDED_FILE):  # Of an earlier start.
        (config.out / name).unlink(missing_ok=True)


def read_run(folder: Path) -> RunConfig:
    """Read the config that a run, or a transfer without one, was made with.

    Raises:
        ConfigError: The folder holds neither, or the record is damaged.
    """
    record = read_record(folder)
    return parse(RunConfig, record.config, str(record.path))


def absolute(config: RunConfig) -> RunConfig:
    """Resolve the paths of a config, for processes that start in another folder."""
    raw = config.model_dump(mode="json")
    raw["out"] = str(config.out.absolute())
    raw["data"] = config.data.absolute()
    for task in (raw["pretext"], *(raw["pretext"] or {}).get("tasks", ())):
        if task and task.get("permutation_file"):
            task["permutation_file"] = str(Path(task["permutation_file"]).absolute())
    transfer = raw["transfer"]
    if transfer:
        _make_absolute(transfer, ("data", "weights", "supervised"))
        for one in (*transfer["trunks"], *transfer["jobs"]):
            _make_absolute(one, ("weights", "voc"))
    return parse(RunConfig, raw, "config")


def _make_absolute(section: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if section.get(key) and not is_remote(section[key]):
            section[key] = str(Path(section[key]).absolute())


def _refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], record: Path) -> None:
    before, now = _flat(theirs), _flat(ours)
    for key in sorted(set(before) | set(now)):
        if not key.startswith(_MAY_CHANGE) and before.get(key) != now.get(key):
            raise ConfigError(
                f"{key} (={now.get(key)}) differs from that of the run in {record} "
                f"(={before.get(key)}); resume with the same config, or choose another out."
            )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
