"""The folder of a run: the names of its files, and the record of how they were made."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import yaml

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError

TRUNK_FILE = "trunk.safetensors"
PRETRAIN_RESULT = "pretrain.json"
TRANSFER_RESULT = "transfer.json"
"""Scores of the job svm."""
TRANSFER_FOLDER = "transfer"
RECORD = "config.yaml"
"""Config, versions and commit; in the run's folder, and in TRANSFER_FOLDER for its transfer."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How the results in a folder were made."""

    path: Path
    config: Mapping[str, Any]
    """The run's YAML, defaults filled in."""
    versions: Mapping[str, str]
    commit: str | None
    is_transfer: bool
    """Whether the folder holds a transfer without a pretraining."""


def write_record(path: Path, config: Mapping[str, Any]) -> None:
    """Write all that is needed to repeat a stage."""
    text = yaml.safe_dump({"config": dict(config), "versions": versions(), "commit": _commit()})
    write_atomic(path, text.encode())


def read_record(folder: Path) -> RunRecord:
    """Read how a run, or a transfer without one, was made.

    Raises:
        ConfigError: The folder holds neither, or the record is damaged.
    """
    own, transfer = folder / RECORD, folder / TRANSFER_FOLDER / RECORD
    path = own if own.exists() or not transfer.exists() else transfer
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raw = None
    if not isinstance(raw, dict) or not isinstance(raw.get("config"), dict):
        raise ConfigError(
            f"run (={folder}) holds no config.yaml of a run; give the out folder of a run."
        )
    return RunRecord(
        path, raw["config"], raw.get("versions") or {}, raw.get("commit"), path == transfer
    )


def versions() -> dict[str, str]:
    """Return the versions that results depend on; Ray's is absent where it is not installed."""
    names = ("tessera", "torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "ray")
    installed = {d.name for d in distributions()}
    return {name: version(name) for name in names if name in installed}


def _commit() -> str | None:
    """Describe the commit of the checkout this code is in, or None outside of one."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else None
