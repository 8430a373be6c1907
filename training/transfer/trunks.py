"""The trunks that a transfer compares, and where their weights come from."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import ConfigError
from training.models.trunks import Trunk, TrunkConfig, build_trunk
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.job import NamedTrunk
from training.transfer.weights import load_trunk

TRUNK_FILE = "trunk.safetensors"

RANDOM_PROTOCOL = (
    "weights drawn by the architecture's own initialisation (He et al. 2015, fan-out, but for "
    "alexnet without BatchNorm and vit_s16), another draw for each seed; BatchNorm with mean 0, "
    "variance 1, scale 1 and shift 0"
)
"""What a random trunk is. The scores of random trunks depend on it more than on anything else."""


def named_trunks(config: TransferConfig, architecture: TrunkConfig, out: Path) -> list[NamedTrunk]:
    """Find the trunks of a section; each is built once, so that a bad file is refused here.

    Args:
        config: Names them.
        architecture: Of all of them.
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
    """Return the SHA-256 of a file of weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seeds_of(trunk: NamedTrunk, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds that a job that draws nothing itself has to run: one if all are alike."""
    return seeds if trunk.draws_weights else seeds[:1]


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
