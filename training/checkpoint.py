"""Checkpoints: atomic, hashed, tensors and JSON only; a run resumes from the newest good one."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.config import ConfigError

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
MANIFEST = "manifest.json"
"""SHA-256 of the other files; written last."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to resume."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """`state_dict()` of the optimizer."""
    progress: dict[str, Any]
    """JSON: the loader's state, the time spent, the hash of the permutation set."""


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep: int = 2, keep_every: int | None = None
) -> None:
    """Write `folder/step-XXXXXXXX` atomically and verify it, then delete the old ones.

    Args:
        folder: Of all checkpoints of a run.
        checkpoint: What is saved.
        keep: How many of the newest stay.
        keep_every: Those of steps that are a multiple of it stay, too.

    Raises:
        OSError: The disk is full or fails, or does not return what was written; older checkpoints
            are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(checkpoint.step)
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _write(partial, checkpoint)
        _verify(partial)
        if final.exists():  # A replay after a resume from an older checkpoint.
            shutil.rmtree(final)
        partial.replace(final)
        _flush(folder)
    except ValueError as error:
        raise OSError(f"{partial}: {error} right after it was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = sorted(path.name for path in folder.glob("step-*"))
    for name in found[:-keep]:
        if not keep_every or int(name.removeprefix("step-")) % keep_every:
            shutil.rmtree(folder / name)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written in a run's folder."""
    for place in (folder, folder / "checkpoints"):
        for path in place.glob(".*.partial"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def load_newest(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint whose bytes match its hashes; None if there are no checkpoints.

    Raises:
        ConfigError: All checkpoints are damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", path, error)
    if found:
        raise ConfigError(
            f"checkpoints (={folder}): all {len(found)} are damaged; restore one or start anew."
        )
    return None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    tensors, rest = _split(checkpoint.optimizer)
    state = {"step": checkpoint.step, "progress": checkpoint.progress, "optimizer": rest}
    files = {
        MODEL: safetensors.torch.save(_contiguous(checkpoint.model)),
        OPTIMIZER: safetensors.torch.save(_contiguous(tensors)),
        STATE: json.dumps(state).encode(),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in (files | {MANIFEST: _sealed(hashes)}).items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _flush(folder)


def _sealed(hashes: Mapping[str, str]) -> bytes:
    """Encode hashes with one of their own; equal hashes give equal bytes."""
    own = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return json.dumps({"sha256": hashes, "own_sha256": own}).encode()


def _verify(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file does not match its hash.
    """
    raw = (folder / MANIFEST).read_bytes()
    hashes = json.loads(raw)["sha256"]
    if raw != _sealed(hashes) or set(hashes) != {MODEL, OPTIMIZER, STATE}:
        raise ValueError(f"{MANIFEST} does not match its hash")
    files = {name: (folder / name).read_bytes() for name in hashes}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise ValueError(f"{name} does not match its hash")
    return files


def _load(path: Path) -> Checkpoint:
    files = _verify(path)
    state = json.loads(files[STATE])
    if path.name != _name(state["step"]):
        raise ValueError(f"it is of step {state['step']}")
    return Checkpoint(
        step=state["step"],
        model=safetensors.torch.load(files[MODEL]),
        optimizer=_join(safetensors.torch.load(files[OPTIMIZER]), state["optimizer"]),
        progress=state["progress"],
    )


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in tensors.items()}


def _split(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's `state_dict()` into tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, state in optimizer["state"].items():
        values[str(number)] = {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
            else:
                values[str(number)][key] = value
    return tensors, {"state": values, "param_groups": optimizer["param_groups"]}


def _join(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_split`."""
    state: dict[int, dict[str, Any]] = {int(n): dict(own) for n, own in rest["state"].items()}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state[int(number)][key] = tensor
    groups = [{key: _value(key, value) for key, value in g.items()} for g in rest["param_groups"]]
    return {"state": state, "param_groups": groups}


def _value(key: str, value: Any) -> Any:
    # JSON has no tuples: of what optimizers hold, only the numbers of parameters are a list.
    return tuple(value) if isinstance(value, list) and key != "params" else value


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
