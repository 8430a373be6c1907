"""The trunks that a transfer compares, and how their weights are read."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config import Config, ConfigError, parse
from pipeline.loading.data import DataConfig, open_store
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.pretext.supervised import SupervisedConfig, held_out
from training.models.trunks import Trunk, TrunkConfig, build_trunk
from training.run_folder import RECORD, TRUNK_FILE, read_record
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.images.pool import contents_of, count_shared
from training.transfer.job import NamedTrunk, TransferTask

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
        build = _loaded(architecture, config.view_px, path)
        build(0)
        found.append(NamedTrunk(source.name, digest_of(path), build, draws_weights=False))
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


_PICKLED = (".pth", ".pt", ".tar", ".bin")
_CLASSIFIER = ("fc.", "classifier.", "heads.", "head.")
"""torchvision's names of the layers after the trunk, which a file may hold."""
_COUNTER = ".num_batches_tracked"
"""A BatchNorm buffer that files of old torch versions lack; nothing depends on it."""
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors: safetensors, or a file of `torch.save` (.pth, .pt, .tar, .bin).

    From a training checkpoint `state_dict` or `model` is read, without the "module." prefix of data
    parallel training.

    Raises:
        ConfigError: The file is missing or damaged, or holds anything but tensors: pickled code is
            never run.
    """
    try:
        if path.suffix.lower() not in _PICKLED:
            return safetensors.torch.load_file(path)
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {error}.") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_pickled(error)}") from None
    except _READ_ERRORS as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_first_line(error)}.") from None
    return _named(raw, path)


def load_trunk(trunk: Trunk, path: Path) -> None:
    """Load weights into a trunk of the same architecture, without the file's classifier.

    Raises:
        ConfigError: The file cannot be read, or has another architecture.
    """
    weights = read_weights(path)
    ours = trunk.net.state_dict()
    weights = {k: v for k, v in weights.items() if k in ours or not k.startswith(_CLASSIFIER)}
    weights |= {k: v for k, v in ours.items() if k.endswith(_COUNTER) and k not in weights}
    trunk.make_room(weights)
    ours = trunk.net.state_dict()
    odd = sorted(set(ours) ^ set(weights))
    odd += [k for k in ours if k in weights and ours[k].shape != weights[k].shape]
    if odd:
        raise ConfigError(
            f"weights (={path}) are of another architecture: {', '.join(odd[:3])} "
            f"{'differs' if len(odd) == 1 else 'differ'} ({len(odd)} keys in all). Give the "
            "trunk section that they were trained with."
        )
    trunk.net.load_state_dict(weights)


def _named(raw: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    if not isinstance(raw, Mapping) or not raw or not all(map(_is_named, raw.items())):
        raise ConfigError(
            f"weights (={path}) hold no tensors by name; save model.state_dict(), not the model."
        )
    return {str(key).removeprefix("module."): value for key, value in raw.items()}


def _is_named(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _pickled(error: pickle.UnpicklingError) -> str:
    if "nsupported" in str(error):  # Globals and opcodes that torch.load refuses.
        return "the file holds pickled code, which is not run; save its state_dict() alone."
    return "the file is damaged or was not written by torch.save."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
