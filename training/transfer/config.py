"""What a transfer measures."""

from pathlib import Path

from pydantic import Field

from pipeline.config import Config
from pipeline.data import Location
from training.precision import Precision


class TransferConfig(Config):
    """Linear SVMs on frozen features of every stage, beside a random trunk."""

    manifest: Location | None = None
    """Labelled shards, as a path or a URL; those of the pretraining where this is left out."""
    weights: Path | None = None
    """Trunk to measure; trunk.safetensors of the run where this is left out."""
    view_px: int = Field(gt=0)
    """Side of the view: the central square of the image, resized."""
    test_share: float = Field(gt=0, lt=1)
    """Share of the images that are tested on; which ones is decided by the hash in their key."""
    train_per_class: int | None = Field(None, ge=2)
    """At most so many training images of each class."""
    test_per_class: int | None = Field(None, ge=1)
    """At most so many test images of each class."""
    max_train: int | None = Field(None, ge=2)
    """At most so many training images in all: every class gets the same share of them."""
    max_test: int | None = Field(None, ge=1)
    """At most so many test images in all: every class gets the same share of them."""
    map_side: int = Field(gt=1)
    """Besides the average over all places, every stage gives the averages over a grid of so many
    places on a side."""
    costs: tuple[float, ...] = Field(min_length=1)
    """Values of the SVM's C; the best in cross-validation is taken, for each stage."""
    folds: int = Field(3, ge=2)
    """Parts of the cross-validation."""
    batch: int = Field(64, gt=0)
    """Images in one pass of the trunk."""
    precision: Precision = "fp32"
    """Of the forward pass; auto takes bf16 where the processor has it."""
    threads: int = Field(2, gt=0)
    """CPU threads that decode, and processes that fit SVMs."""
