"""Checkpoints: atomic, hashed, tensors and JSON only; a run resumes from the newest good one."""

import json
import logging
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from pipeline.config import ConfigError

logger = logging.getLogger(__name__)

_KEEP = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to resume."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """`state_dict()` of the optimizer."""
    progress: dict[str, Any]
    """JSON: the loader's state, the time spent, the hash of the permutation set."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/step-XXXXXXXX` atomically, then delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model = {key: value.contiguous() for key, value in checkpoint.model.items()}
    safetensors.torch.save_file(model, partial / "model.safetensors")
    torch.save(checkpoint.optimizer, partial / "optimizer.pt")
    names = ("model.safetensors", "optimizer.pt")
    hashes = {name: _hash((partial / name).read_bytes()) for name in names}
    state = {"step": checkpoint.step, "progress": checkpoint.progress, "xxh3": hashes}
    sealed = {"state": state, "xxh3": _hash(json.dumps(state).encode())}
    (partial / "state.json").write_text(json.dumps(sealed))
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if final.exists():  # A replay after a resume from an older checkpoint.
        shutil.rmtree(final)
    partial.replace(final)
    for old in sorted(folder.glob("step-*"))[:-_KEEP]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint whose bytes match its hashes; None if there are no checkpoints.

    Raises:
        ConfigError: All checkpoints are damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", path, error)
    if found:
        raise ConfigError(
            f"checkpoints (={folder}): all {len(found)} are damaged; restore one or start anew."
        )
    return None


def _load(path: Path) -> Checkpoint:
    sealed = json.loads((path / "state.json").read_text())
    state = sealed["state"]
    if _hash(json.dumps(state).encode()) != sealed["xxh3"]:
        raise ValueError("state.json does not match its hash")
    for name, expected in state["xxh3"].items():
        if _hash((path / name).read_bytes()) != expected:
            raise ValueError(f"{name} does not match its hash")
    return Checkpoint(
        step=state["step"],
        model=safetensors.torch.load_file(path / "model.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        progress=state["progress"],
    )


def _hash(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
