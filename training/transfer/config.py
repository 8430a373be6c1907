"""Config of a transfer: which jobs, on which images, for which trunks."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.loading.data import DataConfig, Location
from training.models.trunks import TrunkConfig
from training.precision import Precision
from training.transfer.dense.detection import DetectionConfig
from training.transfer.dense.segmentation import SegmentationConfig
from training.transfer.frozen.knn import KnnConfig
from training.transfer.frozen.linear import LinearConfig
from training.transfer.frozen.low_shot import LowShotConfig
from training.transfer.frozen.retrieval import RetrievalConfig
from training.transfer.frozen.svm import SvmConfig
from training.transfer.tuned.finetune import FinetuneConfig
from training.transfer.tuned.lock import LockConfig

Job = (
    SvmConfig
    | LowShotConfig
    | KnnConfig
    | RetrievalConfig
    | LinearConfig
    | FinetuneConfig
    | LockConfig
    | DetectionConfig
    | SegmentationConfig
)
"""Any evaluation of a trunk."""

FROZEN = (SvmConfig, LowShotConfig, KnnConfig, RetrievalConfig)
"""Jobs on frozen features, which are extracted once for all of them."""

_BUILT_IN = ("pretrained", "random", "supervised")


class TrunkSource(Config):
    """One trunk to compare; pretrained, random and supervised may be given as a bare name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """pretrained: the run's, or transfer.weights; random: fresh weights for each seed; supervised:
    from transfer.supervised; any other name needs `weights`."""
    weights: Path | None = None
    """Safetensors, or a state_dict saved by torch.save (.pth); architecture of trunk.name."""

    @model_validator(mode="after")
    def _weights_are_of_other_names(self) -> Self:
        if (self.name in _BUILT_IN) == (self.weights is not None):
            raise ValueError(
                f"name (={self.name}) must be one of {', '.join(_BUILT_IN)}, or another name "
                "with weights."
            )
        return self


class ResourcesConfig(Config):
    """What Ray reserves for one job on one trunk; fractions let several share a processor."""

    num_cpus: float = Field(1, gt=0)
    num_gpus: float | None = Field(None, ge=0)
    """Default: 1 where the cluster has GPUs."""
    retries: int = Field(1, ge=0)
    """How often a job whose process died is restarted."""


def _source(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TransferConfig(Config):
    """Jobs, each run on the same images for every trunk."""

    data: Location | None = None
    """Labelled images: shards (a path or a URL), a VOC folder, or a tree whose last folder level
    names the classes. Default: the shards of the pretraining."""
    weights: Path | None = None
    """Weights of the trunk named pretrained. Default: trunk.safetensors of the run."""
    supervised: Path | None = None
    """The trunk named supervised: the folder of a run, or a weights file."""
    trunks: tuple[Annotated[TrunkSource, BeforeValidator(_source)], ...] = Field(
        (TrunkSource(name="random"), TrunkSource(name="pretrained")), min_length=1
    )
    """Trunks to compare."""
    jobs: tuple[Annotated[Job, Field(discriminator="name")], ...] = Field(
        (SvmConfig(name="svm"),), min_length=1
    )
    """Jobs to run, each kind at most once."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """Seeds of fresh weights, draws and orders: every random job runs once for each, and the range
    is reported beside the mean. Default: the seed of the run."""
    view_px: int = Field(128, gt=0)
    """Side of the view, which is the central square of the image, resized."""
    test_share: float = Field(0.3, gt=0, lt=1)
    """Share of the images to test on where the data have no split; chosen by the key's hash."""
    train_per_class: int | None = Field(None, ge=2)
    """At most this many training images of each class."""
    test_per_class: int | None = Field(None, ge=1)
    """At most this many test images of each class."""
    max_train: int | None = Field(None, ge=2)
    """At most this many training images in all, shared equally among the classes."""
    max_test: int | None = Field(None, ge=1)
    """At most this many test images in all, shared equally among the classes."""
    train_set: str = "trainval"
    """Image set of a VOC folder to train on."""
    test_set: str = "test"
    """Image set of a VOC folder to test on."""
    folds: int = Field(3, ge=2)
    """Lowest number of training images of a class; classes with fewer are excluded."""
    batch: int = Field(64, gt=0)
    """Images in one forward pass where nothing is trained."""
    precision: Precision = "fp32"
    """Precision of the forward pass; auto uses bf16 where the processor has it."""
    threads: int = Field(2, gt=0)
    """CPU threads for decoding."""
    resources: ResourcesConfig = ResourcesConfig()
    """Resources of one job under Ray."""

    @field_validator("trunks")
    @classmethod
    def _trunks_have_their_own_names(
        cls, trunks: tuple[TrunkSource, ...]
    ) -> tuple[TrunkSource, ...]:
        names = [trunk.name for trunk in trunks]
        if len(set(names)) < len(names):
            raise ValueError(f"names (={names}) must differ; they identify results.")
        return trunks

    @field_validator("jobs")
    @classmethod
    def _jobs_are_of_different_kinds(cls, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        names = [job.name for job in jobs]
        if len(set(names)) < len(names):
            raise ValueError(f"jobs (={names}) must be of different kinds; remove one.")
        return jobs


class TransferRun(Config):
    """The sections of a run's YAML that a transfer reads."""

    out: Path
    """Folder of the run's results."""
    seed: int = Field(ge=0)
    """Seed of the order, the random draws and the initial weights."""
    data: DataConfig
    trunk: TrunkConfig
    transfer: TransferConfig | None = None
