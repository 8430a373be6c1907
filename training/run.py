"""A run: one configuration file, one folder of results."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError, parse
from pipeline.loading.data import DataConfig, with_classes
from pipeline.loading.order import OrderConfig
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.remote.fetch import is_remote
from training.models.trunks import TrunkConfig, require_view
from training.optimizer import OptimConfig
from training.precision import Precision
from training.transfer.config import TransferConfig
from training.transfer.record import FOLDER as TRANSFER_FOLDER

_RECORD = "config.yaml"
_TRANSFER_RECORD = f"{TRANSFER_FOLDER}/{_RECORD}"
_MAY_CHANGE = (
    "out",
    "data.",  # The loader compares fingerprints: shards may have moved, not changed.
    "train.workers",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_failures",
    "train.compile",
    "transfer",
)
"""Keys that may differ between a stop and a resume: they change no sample and no view."""

_SIDE_KEYS = {
    "jigsaw": "tile_px",
    "context": "patch_px",
    "rotation": "crop_px",
    "supervised": "crop_px",
}
"""How each task calls the side of its views."""


class TrainConfig(Config):
    """How long, on how many processes, with what precision."""

    epochs: int = Field(gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """End after this training time if the epochs are not done by then; the learning rate follows
    whichever is nearer its end. A run that this ends is not repeatable to the bit."""
    workers: int = Field(1, gt=0)
    """Processes under Ray, one GPU each where there are GPUs; at most order.num_lanes."""
    max_failures: int = Field(0, ge=0)
    """Restarts from the newest checkpoint under Ray before the run is given up."""
    precision: Precision = "auto"
    """Of the forward pass; auto takes bf16 where the processor has it. Weights stay in fp32."""
    compile: bool = False
    """Compile the model with torch.compile: a minute or more at the start, faster steps after it.
    Sums are taken in another order, so that losses differ in their last digits."""
    log_every: int = Field(20, gt=0)
    """Steps between records."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints; the last step is always saved."""


class RunConfig(Config):
    """A configuration file of pretrain, transfer and submit."""

    out: Path
    """Folder of the run's results."""
    seed: int = Field(ge=0)
    """Of the order, the draws and the fresh weights."""
    data: DataConfig
    trunk: TrunkConfig
    order: OrderConfig | None = None
    pretext: PretextConfig | None = None
    optim: OptimConfig | None = None
    train: TrainConfig | None = None
    transfer: TransferConfig | None = None


@dataclass(frozen=True, slots=True)
class Pretraining:
    """The sections of a run that pretraining needs, all there."""

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
        ConfigError: A section is missing, the trunk can not see the views of the pretext, or the
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
        key = f"{task.name} {_SIDE_KEYS[task.name]}"
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
        _make_absolute(transfer, ("data", "manifest", "weights", "supervised"))
        for one in (*transfer["trunks"], *transfer["jobs"]):
            _make_absolute(one, ("weights", "voc"))
    return parse(RunConfig, raw, "config")


def _make_absolute(section: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if section.get(key) and not is_remote(section[key]):
            section[key] = str(Path(section[key]).absolute())


def open_run(config: RunConfig, *, resume: bool) -> None:
    """Make the run's folder and write into it what is needed to repeat the run.

    Raises:
        ConfigError: The folder holds another run, or one that `resume` does not ask for.
    """
    record = config.out / _RECORD
    raw = config.model_dump(mode="json")
    if record.exists():
        if not resume:
            raise ConfigError(
                f"out (={config.out}) holds a run; use --resume to go on or choose another folder."
            )
        _refuse_other(yaml.safe_load(record.read_text())["config"], raw, record)
        return
    config.out.mkdir(parents=True, exist_ok=True)
    _write_record(record, raw)


def record_transfer(config: RunConfig) -> None:
    """Write beside the results of a transfer what is needed to repeat it.

    The folder of a run has its own record; that of a transfer alone is told by this one.
    """
    _write_record(config.out / _TRANSFER_RECORD, config.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What was written where a run or a transfer was made."""

    path: Path
    config: RunConfig
    versions: Mapping[str, str]
    commit: str | None
    is_transfer: bool
    """Whether the folder holds a transfer alone."""


def read_record(folder: Path) -> RunRecord:
    """Read how the folder of a run, or of a transfer alone, was made.

    Raises:
        ConfigError: The folder holds neither, or the record is damaged.
    """
    own, transfer = folder / _RECORD, folder / _TRANSFER_RECORD
    path = own if own.exists() or not transfer.exists() else transfer
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raw = None
    if not isinstance(raw, dict) or not isinstance(raw.get("config"), dict):
        raise ConfigError(
            f"run (={folder}) holds no config.yaml of a run; give the out folder of a run."
        )
    config = parse(RunConfig, raw["config"], str(path))
    return RunRecord(
        path, config, raw.get("versions") or {}, raw.get("commit"), is_transfer=path == transfer
    )


def read_run(folder: Path) -> RunConfig:
    """Read the config that a run was made with.

    Raises:
        ConfigError: The folder holds no run.
    """
    return read_record(folder).config


def versions() -> dict[str, str]:
    """Versions of what a result depends on; Ray's is absent where only cluster/ would need it."""
    names = ("tessera", "torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "ray")
    there = {d.name for d in distributions()}
    return {name: version(name) for name in names if name in there}


def _write_record(path: Path, raw: dict[str, Any]) -> None:
    text = yaml.safe_dump({"config": raw, "versions": versions(), "commit": _commit()})
    write_atomic(path, text.encode())


def _refuse_other(theirs: dict[str, Any], ours: dict[str, Any], record: Path) -> None:
    before, now = _flat(theirs), _flat(ours)
    for key in sorted(set(before) | set(now)):
        if not key.startswith(_MAY_CHANGE) and before.get(key) != now.get(key):
            raise ConfigError(
                f"{key} (={now.get(key)}) differs from that of the run in {record} "
                f"(={before.get(key)}); resume with the same config, or choose another out."
            )


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _commit() -> str | None:
    """Name the commit of the checkout this code is in, or None outside of one."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else None
