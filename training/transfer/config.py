"""What a transfer measures: which jobs, on which images, of which trunks."""

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
"""Anything that a trunk can be asked to do."""

FROZEN = (SvmConfig, LowShotConfig, KnnConfig, RetrievalConfig)
"""Jobs that look at frozen features, which are extracted once for all of them."""

_BUILT_IN = ("pretrained", "random", "supervised")
_OF_THE_SVM = ("map_side", "costs")
"""Keys of a section without jobs, which is one job: svm."""


class TrunkSource(Config):
    """One of the trunks to compare; its bare name will do for pretrained, random, supervised."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """pretrained: of the run, or transfer.weights; random: fresh weights for each seed;
    supervised: of transfer.supervised; any other name is that of `weights`."""
    weights: Path | None = None
    """Safetensors, or what torch.save wrote (.pth); of the architecture of trunk.name."""

    @model_validator(mode="after")
    def _weights_are_of_other_names(self) -> Self:
        if (self.name in _BUILT_IN) == (self.weights is not None):
            raise ValueError(
                f"name (={self.name}) must be one of {', '.join(_BUILT_IN)}, or another name "
                "with weights."
            )
        return self


class ResourcesConfig(Config):
    """What Ray sets aside for one job on one trunk; fractions let several share a processor."""

    num_cpus: float = Field(1, gt=0)
    num_gpus: float | None = Field(None, ge=0)
    """One where this is left out and the cluster has GPUs."""
    retries: int = Field(1, ge=0)
    """How often a job whose process died is started again."""


def _source(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TransferConfig(Config):
    """Jobs, each on the same images of every trunk."""

    data: Location | None = None
    """Labelled images: shards (a path or a URL), a VOC folder, or a tree whose last folder level
    names the classes; the shards of the pretraining where this is left out."""
    manifest: Location | None = None
    """An older name of data, for shards."""
    weights: Path | None = None
    """Of the trunk named pretrained; trunk.safetensors of the run where this is left out."""
    supervised: Path | None = None
    """Of the trunk named supervised: the folder of a run, or a file of weights."""
    trunks: tuple[Annotated[TrunkSource, BeforeValidator(_source)], ...] = Field(
        (TrunkSource(name="random"), TrunkSource(name="pretrained")), min_length=1
    )
    """To compare."""
    jobs: tuple[Annotated[Job, Field(discriminator="name")], ...] = ()
    """Each kind at most once; svm with map_side, costs and folds of this section where there are
    none."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """Of fresh weights, draws and orders: every job that draws runs once for each, and the range
    is told beside the mean. The seed of the run where this is left out."""
    view_px: int = Field(128, gt=0)
    """Side of the view: the central square of the image, resized."""
    test_share: float = Field(0.3, gt=0, lt=1)
    """Share of the images that are tested on, where the data are not split already; which ones is
    decided by the hash in their key."""
    train_per_class: int | None = Field(None, ge=2)
    """At most so many training images of each class."""
    test_per_class: int | None = Field(None, ge=1)
    """At most so many test images of each class."""
    max_train: int | None = Field(None, ge=2)
    """At most so many training images in all: every class gets the same share of them."""
    max_test: int | None = Field(None, ge=1)
    """At most so many test images in all: every class gets the same share of them."""
    train_set: str = "trainval"
    """Image set of a VOC folder that is trained on."""
    test_set: str = "test"
    """Image set of a VOC folder that is tested on."""
    map_side: int | None = Field(None, gt=1)
    """Of the svm job of a section without jobs, see there."""
    costs: tuple[float, ...] | None = Field(None, min_length=1)
    """Of the svm job of a section without jobs, see there."""
    folds: int = Field(3, ge=2)
    """Training images that a class must have at least, and parts of the cross-validation of a
    section without jobs."""
    batch: int = Field(64, gt=0)
    """Images in one pass of the trunk where nothing is trained."""
    precision: Precision = "fp32"
    """Of the forward pass; auto takes bf16 where the processor has it."""
    threads: int = Field(2, gt=0)
    """CPU threads that decode."""
    resources: ResourcesConfig = ResourcesConfig()
    """Of one job under Ray."""

    @field_validator("trunks")
    @classmethod
    def _trunks_have_their_own_names(
        cls, trunks: tuple[TrunkSource, ...]
    ) -> tuple[TrunkSource, ...]:
        names = [trunk.name for trunk in trunks]
        if len(set(names)) < len(names):
            raise ValueError(f"names (={names}) must differ; results are told apart by them.")
        return trunks

    @model_validator(mode="after")
    def _keys_do_not_contradict_each_other(self) -> Self:
        if self.data is not None and self.manifest is not None:
            raise ValueError(
                f"data (={self.data}) and manifest (={self.manifest}) are two names of one key; "
                "leave manifest out."
            )
        names = [job.name for job in self.jobs]
        if len(set(names)) < len(names):
            raise ValueError(f"jobs (={names}) must be of different kinds; leave one out.")
        odd = [key for key in _OF_THE_SVM if self.jobs and getattr(self, key) is not None]
        if odd:
            raise ValueError(
                f"{odd[0]} (={getattr(self, odd[0])}) belongs to the job svm where there are "
                "jobs; write it there."
            )
        return self

    @property
    def location(self) -> str | None:
        """Where the labelled images are; None for those of the pretraining."""
        return self.data or self.manifest

    @property
    def all_jobs(self) -> tuple[Job, ...]:
        """The jobs; those of a section without any are one."""
        if self.jobs:
            return self.jobs
        given = {key: getattr(self, key) for key in _OF_THE_SVM if getattr(self, key) is not None}
        return (SvmConfig(name="svm", folds=self.folds, **given),)


class TransferRun(Config):
    """The sections of a run's YAML that a transfer reads."""

    out: Path
    """Folder of the run's results."""
    seed: int = Field(ge=0)
    """Seed of the order, the random draws and the initial weights."""
    data: DataConfig
    trunk: TrunkConfig
    transfer: TransferConfig | None = None
