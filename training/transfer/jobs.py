"""The one choice between jobs."""

from typing_extensions import assert_never

from training.transfer.config import Job
from training.transfer.dense.detection import DetectionConfig, run_detection
from training.transfer.dense.segmentation import SegmentationConfig, run_segmentation
from training.transfer.frozen.knn import KnnConfig, run_knn
from training.transfer.frozen.linear import LinearConfig, run_linear
from training.transfer.frozen.low_shot import LowShotConfig, run_low_shot
from training.transfer.frozen.retrieval import RetrievalConfig, run_retrieval
from training.transfer.frozen.svm import SvmConfig, run_svm
from training.transfer.job import NamedTrunk, Progress, Score, Setting
from training.transfer.tuned.finetune import FinetuneConfig, run_finetune
from training.transfer.tuned.lock import LockConfig, run_lock


def run_job(job: Job, setting: Setting, trunk: NamedTrunk, on_progress: Progress) -> list[Score]:
    """Run a job on a trunk; files only below the setting's folder."""
    match job:
        case SvmConfig() | LowShotConfig() | KnnConfig() | RetrievalConfig():
            return _run_frozen(job, setting, trunk, on_progress)
        case LinearConfig():
            return run_linear(job, setting, trunk, on_progress)
        case FinetuneConfig():
            return run_finetune(job, setting, trunk, on_progress)
        case LockConfig():
            return run_lock(job, setting, trunk, on_progress)
        case DetectionConfig():
            return run_detection(job, setting, trunk, on_progress)
        case SegmentationConfig():
            return run_segmentation(job, setting, trunk, on_progress)
        case _:
            assert_never(job)


def _run_frozen(
    job: SvmConfig | LowShotConfig | KnnConfig | RetrievalConfig,
    setting: Setting,
    trunk: NamedTrunk,
    on_progress: Progress,
) -> list[Score]:
    match job:
        case SvmConfig():
            return run_svm(job, setting, trunk, on_progress)
        case LowShotConfig():
            return run_low_shot(job, setting, trunk, on_progress)
        case KnnConfig():
            return run_knn(job, setting, trunk, on_progress)
        case RetrievalConfig():
            return run_retrieval(job, setting, trunk, on_progress)
        case _:
            assert_never(job)
