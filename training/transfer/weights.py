"""Weights files of our own and of others into a trunk; of no file is code run."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config import ConfigError
from training.models.trunks import Trunk
from training.transfer.job import count_odd

_PICKLED = (".pth", ".pt", ".tar", ".bin")
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "student",
)
"""Entries that hold the weights in a file that holds more; of two that fit, the first is read:
DINO's teacher is what its authors evaluate."""
_PARTS = (
    "module",  # DistributedDataParallel.
    "_orig_mod",  # torch.compile.
    "model",
    "net",
    "teacher",
    "teacher_backbone",
    "student",
    "student_backbone",
    "encoder_q",  # MoCo; its encoder_k is a running mean that nobody evaluates.
    "base_encoder",  # MoCo v3.
    "backbone",  # lightly.
    "encoder",
)
"""What may stand before the names of a trunk's weights; of two that fit, the first is read."""
_CLASSIFIER = ("fc.", "classifier.", "heads.", "head.")
"""Names of the layers after the trunk, which a file may hold."""
_COUNTER = "num_batches_tracked"
"""A BatchNorm buffer that files of old torch versions lack; nothing depends on it."""
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile)


def load_trunk(trunk: Trunk, path: Path) -> tuple[str, ...]:
    """Load weights into a trunk of the same architecture, without the file's classifier.

    Names as DDP, torch.compile, lightly, MoCo, DINO and timm leave them are understood: what stands
    before the trunk's own names is removed, and entries that wrap the weights are opened. An
    `nn.Sequential` of the trunk's layers, as lightly has it, is read by position.

    Returns:
        How the file was read where its names are not the trunk's own, one line each.

    Raises:
        ConfigError: The file cannot be read, has another architecture, or holds values that are not
            finite.
    """
    ours = trunk.net.state_dict()
    layers = [name for name, _ in trunk.net.named_children()]
    readings = [
        reading for named in read_weights(path) for reading in _readings(named, ours, layers)
    ]
    best = max(readings, key=lambda reading: reading.rank, default=None)
    if best is None or not best.num_ours:
        raise ConfigError(_unknown(path, readings, ours))
    weights = dict(best.weights)
    weights |= {k: v for k, v in ours.items() if k.endswith(_COUNTER) and k not in weights}
    trunk.make_room(weights)
    ours = trunk.net.state_dict()
    odd = sorted(set(ours) ^ set(weights))
    odd += [k for k in ours if k in weights and ours[k].shape != weights[k].shape]
    if odd:
        raise ConfigError(
            f"weights (={path}){best.where} are of another architecture: {', '.join(odd[:3])} "
            f"{'differs' if len(odd) == 1 else 'differ'} ({len(odd)} keys in all). Give the "
            "trunk section that they were trained with."
        )
    _require_finite(weights, path)
    trunk.net.load_state_dict(weights)
    return best.notes


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors by name, as one entry of a file holds them."""

    entry: str
    """Names of the entries that were opened, joined by dots; empty where there are none."""
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to read the tensors of a file as a trunk's."""

    entry: str
    prefix: str
    """What is removed before the names, with its dot."""
    is_sequence: bool
    """Whether layers are named by their position."""
    weights: Mapping[str, Tensor]
    """By the trunk's names, without a classifier."""
    left_out: tuple[str, ...]
    """Keys of the file that are not below the prefix, or a classifier's."""
    num_ours: int
    """How many of the trunk's weights are there."""
    preference: tuple[int, ...]
    """The larger, the better, of readings that fit alike."""

    @property
    def rank(self) -> tuple[Any, ...]:
        """The most weights of ours, then the preferred names."""
        return (self.num_ours, self.preference)

    @property
    def where(self) -> str:
        """Where in the file the weights are, for messages."""
        found = [f"in {self.entry}"] if self.entry else []
        found += [f"below {self.prefix.rstrip('.')}"] if self.prefix else []
        return f" ({', '.join(found)})" if found else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the file was read, where its names are not the trunk's own."""
        if not self.where and not self.is_sequence:
            return ()
        order = ", layers by their position" if self.is_sequence else ""
        rest = f"; {len(self.left_out)} others left out" if self.left_out else ""
        some = f" ({', '.join(self.left_out[:2])})" if self.left_out else ""
        return (f"{len(self.weights)} weights read{self.where}{order}{rest}{some}",)


def read_weights(path: Path) -> list[Named]:
    """Read named tensors: safetensors, or a file of `torch.save` (.pth, .pt, .tar, .bin).

    Returns:
        The file's tensors, or those of each entry that wraps weights, in the order of preference.

    Raises:
        ConfigError: The file is missing or damaged, or holds anything but tensors: pickled code is
            never run.
    """
    try:
        if path.suffix.lower() not in _PICKLED:
            return [Named("", safetensors.torch.load_file(path))]
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {error}.") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_pickled(error)}") from None
    except _READ_ERRORS as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_first_line(error)}.") from None
    found = list(_opened(raw, ()))
    if not found:
        raise ConfigError(
            f"weights (={path}) hold no tensors by name; save model.state_dict(), not the model."
        )
    return found


def _opened(raw: Any, entries: tuple[str, ...]) -> Iterator[Named]:
    """Yield what a file holds by name: itself, or what its wrappers hold."""
    if not isinstance(raw, Mapping) or not raw:
        return
    wrapped = [key for key in _WRAPPERS if isinstance(raw.get(key), Mapping)]
    for key in wrapped:
        yield from _opened(raw[key], (*entries, key))
    if not wrapped and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in raw.items()):
        yield Named(".".join(entries), raw)


def _readings(
    named: Named, ours: Mapping[str, Tensor], layers: Sequence[str]
) -> Iterator[_Reading]:
    """Yield every way to read tensors: below each prefix, layers by name and by position."""
    prefixes = {""} | {prefix for key in named.weights for prefix in _prefixes(key)}
    for prefix in sorted(prefixes):
        below = {k.removeprefix(prefix): v for k, v in named.weights.items() if _is(k, prefix)}
        outside = [key for key in named.weights if not _is(key, prefix)]
        for is_sequence in (False, True):
            renamed = _by_name(below, layers) if is_sequence else below
            heads = [k for k in renamed if k not in ours and k.startswith(_CLASSIFIER)]
            weights = {k: v for k, v in renamed.items() if k not in heads}
            parts = [_PARTS.index(part) for part in prefix.split(".")[:-1]]
            yield _Reading(
                entry=named.entry,
                prefix=prefix,
                is_sequence=is_sequence,
                weights=weights,
                left_out=(*outside, *(prefix + key for key in heads)),
                num_ours=sum(k in weights for k in ours if not k.endswith(_COUNTER)),
                preference=(-_order(named.entry), -int(is_sequence), *(-part for part in parts)),
            )


def _is(key: str, prefix: str) -> bool:
    return key.startswith(prefix)


def _prefixes(key: str) -> Iterator[str]:
    """Yield what may be removed before a name.

    >>> list(_prefixes("module.encoder_q.layer1.0.conv1.weight"))
    ['module.', 'module.encoder_q.']
    """
    prefix = ""
    for part in key.split(".")[:-1]:
        if part not in _PARTS:
            return
        prefix += f"{part}."
        yield prefix


def _order(entry: str) -> int:
    """Return the place of the innermost entry in the order of preference."""
    last = entry.rpartition(".")[2]
    return _WRAPPERS.index(last) if last in _WRAPPERS else -1


def _by_name(weights: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """Rename weights whose layers are numbered, as in an `nn.Sequential` of them."""
    renamed = {}
    for key, value in weights.items():
        number, dot, rest = key.partition(".")
        is_known = number.isdecimal() and int(number) < len(layers)
        renamed[f"{layers[int(number)]}{dot}{rest}" if is_known else key] = value
    return renamed


def _unknown(path: Path, readings: Sequence[_Reading], ours: Mapping[str, Tensor]) -> str:
    keys = [k for reading in readings if not reading.prefix for k in reading.weights]
    keys += [k for reading in readings for k in reading.left_out]
    shown = ", ".join(list(dict.fromkeys(keys))[:3])
    return (
        f"weights (={path}) are of another architecture: they hold none of the trunk's "
        f"{len(ours)} ({next(iter(ours))}, ...), but {shown}. Give the trunk section that they "
        f"were trained with, or rename them; known prefixes are {', '.join(_PARTS)}."
    )


def _require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not finite.

    Raises:
        ConfigError: Some are not.
    """
    counts = {key: count_odd(value) for key, value in weights.items()}
    odd = [key for key, count in counts.items() if count]
    if odd:
        raise ConfigError(
            f"weights (={path}) are not finite: {odd[0]} holds {counts[odd[0]]} NaN or infinite "
            f"values of {weights[odd[0]].numel()} ({len(odd)} keys in all); the training that "
            "wrote them diverged. Give an earlier checkpoint."
        )


def _pickled(error: pickle.UnpicklingError) -> str:
    if "nsupported" in str(error):  # Globals and opcodes that torch.load refuses.
        return "the file holds pickled code, which is not run; save its state_dict() alone."
    return "the file is damaged or was not written by torch.save."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
