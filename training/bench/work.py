"""The work that every contender does: which images, which trunk, which layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.config import ConfigError
from training.models.trunks import Trunk, TrunkConfig
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.frozen.svm import SvmConfig
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule
from training.transfer.job import Labelled, NamedTrunk, Setting, TransferTask
from training.transfer.trunks import named_trunks

TrunkName = Literal["resnet18", "small"]

SVM = SvmConfig(name="svm")
POOLINGS = SVM.poolings(multi_label=False)
"""Of every stage: averages over all places, and over 2 x 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionWork:
    """Views of labelled images into features of all stages of a random trunk."""

    shards: str
    """Labelled shards, with or without a split."""
    folder: str
    """Of features and loose files."""
    trunk: TrunkName
    view_px: int
    batch: int
    cores: int
    train_per_class: int
    test_per_class: int
    num_classes: int | None
    """At most so many classes, the first ones; None takes all."""

    def setting(self) -> Setting:
        """Open the images.

        Raises:
            ConfigError: There are no labels, too few images, or several classes an image.
        """
        rule = SplitRule(train_per_class=self.train_per_class, test_per_class=self.test_per_class)
        folder = Path(self.folder)
        options = TaskOptions(rule=rule)
        task = open_task(self.shards, options=options, pretrain=None, folder=folder)
        return Setting(
            task=first_classes(task, self.num_classes),
            device=torch.device("cpu"),
            view_px=self.view_px,
            seeds=(0,),
            batch=self.batch,
            threads=self.cores,
            precision="fp32",
            folder=folder,
        )

    def named_trunk(self) -> NamedTrunk:
        """Return the random trunk, as a transfer makes it."""
        config = TransferConfig(trunks=(TrunkSource(name="random"),), view_px=self.view_px)
        (found,) = named_trunks(config, TrunkConfig(name=self.trunk), Path(self.folder))
        return found

    def net(self) -> Trunk:
        """Build the trunk as a transfer runs it."""
        return self.named_trunk().build(0).to(memory_format=torch.channels_last).eval()


def first_classes(task: TransferTask, num: int | None) -> TransferTask:
    """Leave out all but the first `num` classes that have images, and number these anew.

    Raises:
        ConfigError: Images may show several classes.
    """
    if task.train.is_multi_label:
        raise ConfigError(
            "data says several classes of an image; the bench measures one class an image. Give a "
            "tree with a folder for each class, or shards of one."
        )
    chosen = np.unique(task.train.targets)[:num]

    def cut(side: Labelled) -> Labelled:
        kept = np.isin(side.targets, chosen)
        numbers = np.searchsorted(chosen, side.targets[kept])
        return Labelled(side.store, side.sample_ids[kept], numbers)

    names = tuple(task.classes[k] for k in chosen.tolist())
    return TransferTask(cut(task.train), cut(task.test), names, task.overlap)
