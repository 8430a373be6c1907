"""A trunk with a fresh classifier on it, of which all or only the later stages are trained."""

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from training.models.trunks import Trunk

# Shapes: B batch, D width of the trunk, C classes, H/W view size.


HEAD = "head"
"""Names the classifier where it stands beside names of stages."""


class Classifier(nn.Module):
    """Gives logits (B, C) of images (B, 3, H, W)."""

    def __init__(
        self, trunk: Trunk, head: nn.Module, *, num_locked: int, frozen_norms: bool
    ) -> None:
        """Lock the first stages of a trunk: no gradient, and BatchNorm as it is.

        Args:
            trunk: What is trained, from the stage `num_locked` on.
            head: Gets (B, D).
            num_locked: Stages that are not trained.
            frozen_norms: Whether every BatchNorm of the trunk uses the running statistics that it
                came with; its scale and shift are trained all the same.
        """
        super().__init__()
        self.trunk, self.head = trunk, head
        self._num_locked, self._frozen_norms = num_locked, frozen_norms
        for key, parameter in trunk.net.named_parameters():
            parameter.requires_grad_(trunk.stage_of(key) >= num_locked)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained; what is locked stays as in a test."""
        super().train(mode)
        for name, module in self.trunk.net.named_modules():
            if mode and self._stays(name, module):
                module.training = False  # `eval` would reach the modules inside, too.
        return self

    def _stays(self, name: str, module: nn.Module) -> bool:
        if isinstance(module, _BatchNorm) and self._frozen_norms:
            return True
        own = any(True for _ in module.parameters(recurse=False))
        return own and self.trunk.stage_of(name) < self._num_locked

    def stage_of(self, name: str) -> int:
        """Return the stage of a parameter of this model; behind the last, the classifier's."""
        key = name.removeprefix("trunk.net.")
        return len(self.trunk.stage_names) if key == name else self.trunk.stage_of(key)


def fresh_head(
    width: int, hidden: tuple[int, ...], num_classes: int, *, dropout: float
) -> nn.Sequential:
    """Make a classifier; weights are drawn from N(0, 0.01), hidden ones as He et al. 2015 do.

    Args:
        width: Of the features, D.
        hidden: Widths of layers between them and the output layer.
        num_classes: C.
        dropout: Share of a hidden layer that is left out of a step.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip((width, *hidden), hidden, strict=False):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True), nn.Dropout(dropout)]
    last = nn.Linear((width, *hidden)[-1], num_classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def renew_stages(trunk: Trunk, *, num_kept: int, seed: int) -> Trunk:
    """Keep the first stages of a trunk, and take the others from a fresh one.

    Args:
        trunk: Made by `build_trunk`; it stays as it is.
        num_kept: Stages that are copied, at least one.
        seed: Names the fresh weights; no trunk that is drawn by a seed itself has the same ones.
    """
    torch.manual_seed(seed_of("renewed", seed))
    fresh = trunk.remake()
    weights = trunk.export()
    fresh.make_room(weights)
    kept = {key: value for key, value in weights.items() if trunk.stage_of(key) < num_kept}
    fresh.net.load_state_dict(fresh.net.state_dict() | kept)
    return fresh


def seed_of(name: str, seed: int) -> int:
    """Return a seed for torch that differs between names."""
    return xxhash.xxh3_64_intdigest(f"{name}:{seed}".encode()) >> 1
