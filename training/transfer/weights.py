"""Weights from files of this project and of others: tensors only, never code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config import ConfigError
from training.models.trunks import Trunk

_PICKLED = (".pth", ".pt", ".tar", ".bin")
_CLASSIFIER = ("fc.", "classifier.", "heads.", "head.")
"""What torchvision calls the layers behind the trunk; a file may hold them."""
_COUNTER = ".num_batches_tracked"
"""A buffer of BatchNorm that older files lack; nothing depends on it."""
_DAMAGES = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name: safetensors, or what `torch.save` wrote (.pth, .pt, .tar, .bin).

    Of a training checkpoint, what is under `state_dict` or `model` is taken, without the prefix
    that data parallel training puts before names.

    Raises:
        ConfigError: The file is missing or damaged, or holds other than tensors: code is not run.
    """
    try:
        if path.suffix.lower() not in _PICKLED:
            return safetensors.torch.load_file(path)
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {error}.") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_pickled(error)}") from None
    except _DAMAGES as error:
        raise ConfigError(f"weights (={path}) cannot be read: {_first_line(error)}.") from None
    return _named(raw, path)


def load_trunk(trunk: Trunk, path: Path) -> None:
    """Load weights into a trunk of the same architecture; a classifier behind it is left out.

    Raises:
        ConfigError: The file cannot be read, or is of another architecture.
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
    if "nsupported" in str(error):  # Globals, classes and operands that torch.load refuses.
        return "the file holds pickled code, which is not run; save its state_dict() alone."
    return "the file is damaged or was not written by torch.save."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
