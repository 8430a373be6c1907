"""Optimizers and the learning rate schedule."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from typing_extensions import assert_never

from pipeline.config import Config


class SgdConfig(Config):
    """SGD with momentum."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    """Peak learning rate at the configured global batch; it is never rescaled."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    """Not applied to biases, normalisation, class token and position embedding."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the run over which the learning rate rises from 0."""


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    lr: float = Field(gt=0)
    """Peak learning rate at the configured global batch; it is never rescaled."""
    weight_decay: float = Field(0.05, ge=0)
    """Not applied to biases, normalisation, class token and position embedding."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the run over which the learning rate rises from 0."""


OptimConfig = Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")]


def build_optimizer(
    model: nn.Module,
    config: SgdConfig | AdamWConfig,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """Make the optimizer, with weight decay on matrices and filters only.

    Args:
        model: Weights that require no gradient are excluded.
        config: The optimizer and its settings.
        lr_factor: Factor on the learning rate by weight name; `set_rate` applies it.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    factors = [lr_factor(name) for name, _ in named]
    groups = []
    for factor in sorted(set(factors)):
        ours = [pair for pair, its in zip(named, factors, strict=True) if its == factor]
        weights = [p for name, p in ours if _decays(name, p)]
        others = [p for name, p in ours if not _decays(name, p)]
        groups += [
            {"params": weights, "weight_decay": config.weight_decay, "lr_factor": factor},
            {"params": others, "weight_decay": 0.0, "lr_factor": factor},
        ]
    match config:
        case SgdConfig():
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
        case AdamWConfig():
            return torch.optim.AdamW(groups, lr=config.lr)
        case _:
            assert_never(config)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # Tokens and positions are not multiplied with an input (Touvron et al. 2021).
    return parameter.ndim > 1 and not name.endswith(("class_token", "pos_embedding"))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every parameter group's learning rate to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def learning_rate(config: SgdConfig | AdamWConfig, progress: float) -> float:
    """Rise linearly over the warm-up, then decay to 0 as a half cosine (Loshchilov, Hutter 2017).

    Args:
        config: Peak rate and warm-up.
        progress: Share of the run that is done, 0 to 1.
    """
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
