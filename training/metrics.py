"""Metrics of a run: one JSON line per record, the same in TensorBoard, and how the run ended."""

import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import Self

from pipeline.loading.loader import Loader
from pipeline.remote.cache import CacheStats
from training.ddp import Ranks

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE_NAME = "metrics.jsonl"
_POLL_SECONDS = 1.0
_TAIL_BYTES = 4096  # Several records; one has about 500.


@dataclass(frozen=True, slots=True)
class MetricsRecord:
    """Means since the last record, over all ranks."""

    step: int
    """Steps done."""
    epoch: int
    progress: float
    """Share of the run that is done, 0 to 1."""
    seconds: float
    """Training time so far, without restarts and start-up."""
    loss: float
    accuracy: float
    """Pretext accuracy, 0 to 1, in training mode on fresh views; the mean over its tasks."""
    lr: float
    images_per_s: float
    """All ranks together."""
    starvation: float
    """Share of the time that rank 0 waited for the loader, 0 to 1: the sum of the next three."""
    planning: float = 0.0
    """Share spent on order, draws and plans."""
    reading: float = 0.0
    """Share spent opening and hashing shards, or waiting for remote ones."""
    decode_wait: float = 0.0
    """Share spent waiting for the graph."""
    in_flight: int = 0
    """Batches of rank 0 that are planned but not yet consumed."""
    read_mb_per_s: float = 0.0
    """Encoded bytes read by all ranks, in 10^6 bytes."""
    replaced: int = 0
    """Samples that replaced damaged ones, over all ranks."""
    cache_hits: int = 0
    """Remote shards that rank 0 found on its node, since the start."""
    cache_misses: int = 0
    """Remote shards that rank 0 waited for, since the start."""
    cache_mb: float = 0.0
    """Fetched by rank 0 since the start, in 10^6 bytes."""
    skipped: int = 0
    """Steps without a finite gradient; they count in none of the means."""
    accuracy_of: dict[str, float] = field(default_factory=dict)
    """Accuracy of each task."""


OnRecord = Callable[[MetricsRecord], None]


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """How a run ended; the keys of pretrain.json."""

    steps: int
    epochs: float
    """Epochs seen, with fractions."""
    seconds: float
    """Training time without start-up."""
    images_per_s: float
    """Mean over the whole run, all ranks together."""
    starvation: float
    """Share of the time that rank 0 waited for the loader."""
    loss: float
    accuracy: float
    """Pretext accuracy over the last tenth of the records, 0 to 1, on fresh views; the mean over
    its tasks."""
    chance: float
    """Accuracy of a blind guess."""
    remainder: int
    """Samples of an epoch that fill no step and wait for the next epoch's shuffle."""
    replaced: int
    """Samples that replaced damaged ones, over the whole run."""
    accuracy_of: dict[str, float]
    """Accuracy of each task."""
    permutations_sha256: str | None
    """SHA-256 of a jigsaw puzzle's permutation set, which defines what its labels mean."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step on one rank."""

    loss: Tensor
    """Scalar, mean over the rank's images."""
    right: Tensor
    """float (K,), share of right answers of each task."""
    is_finite: bool = True
    """Whether the gradient over all ranks was finite; if not, the step was skipped everywhere."""
    must_stop: bool = False
    """Whether any rank is asked to stop."""
    time_spent: float = 0.0
    """Share of the run's time that is spent, of rank 0."""


class Meter:
    """Accumulates the steps of this rank into records over all ranks."""

    def __init__(self, ranks: Ranks, loader: Loader, tasks: Sequence[str]) -> None:
        self._ranks, self._loader, self._tasks = ranks, loader, tuple(tasks)
        self._reset()

    def add(self, result: StepResult, images: int, waited: float) -> None:
        """Add a step of this rank that waited `waited` seconds for the loader."""
        self._waited += waited
        if not result.is_finite:
            self._skipped += 1
            return
        step = torch.cat([result.loss[None], result.right, result.right.new_ones(1)])
        self._sums += step.double() * images  # Every image is asked the same number of questions.
        self._has_steps = True

    @property
    def has_steps(self) -> bool:
        """Whether there is something to record, the same on every rank."""
        return self._has_steps

    def restart(self) -> None:
        """Forget the steps since the last record."""
        self._reset()

    def record(
        self, step: int, epoch: int, progress: float, seconds: float, lr: float
    ) -> MetricsRecord:
        """Sum over ranks, reset, and return the means; every rank must call it at the same step."""
        counts = self._loader.counters.since(self._before)
        extra = torch.tensor([counts.bytes_read, counts.replaced], dtype=torch.float64)
        sums = torch.cat([self._sums, extra.to(self._ranks.device)])
        loss, *right, images, bytes_read, replaced = self._ranks.sum(sums).tolist()
        shares = [share / images for share in right]
        elapsed = time.monotonic() - self._since
        stats = self._loader.cache.stats() if self._loader.cache else CacheStats()
        record = MetricsRecord(
            step=step,
            epoch=epoch,
            progress=progress,
            seconds=seconds,
            loss=loss / images,
            accuracy=sum(shares) / len(shares),
            lr=lr,
            images_per_s=images / elapsed,
            starvation=self._waited / elapsed,
            planning=counts.plan_s / elapsed,
            reading=counts.read_s / elapsed,
            decode_wait=counts.decode_wait_s / elapsed,
            in_flight=counts.in_flight,
            read_mb_per_s=bytes_read / elapsed / 1e6,
            replaced=int(replaced),
            skipped=self._skipped,
            cache_hits=stats.hits,
            cache_misses=stats.misses + stats.waits,
            cache_mb=stats.bytes_fetched / 1e6,
            accuracy_of=dict(zip(self._tasks, shares, strict=True)),
        )
        self._reset()
        return record

    def _reset(self) -> None:
        sums = torch.zeros(2 + len(self._tasks), dtype=torch.float64)
        self._sums = sums.to(self._ranks.device)
        self._waited = 0.0
        self._skipped, self._has_steps = 0, False
        self._before = self._loader.counters.copy()
        self._since = time.monotonic()


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard's event files in `folder`."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        self._folder = folder
        self._open(resume_step)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, which will be repeated."""
        self._file.close()
        self._board.close()
        self._open(step)

    def _open(self, resume_step: int) -> None:
        # A resumed run repeats the steps after its checkpoint: their old records go.
        folder = self._folder
        kept = [r for r in read_metrics(folder) if r.step <= resume_step]
        self._file = (folder / FILE_NAME).open("w", encoding="utf-8")
        for record in kept:
            self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()
        self._board = _tensorboard(folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, record: MetricsRecord) -> None:
        """Write one record; it is on the disk when this returns."""
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()
        values = asdict(record)
        by_task = values.pop("accuracy_of")
        if len(by_task) > 1:
            values |= {f"accuracy/{name}": value for name, value in by_task.items()}
        for name, value in values.items():
            if name not in ("step", "epoch", "progress", "seconds"):
                self._board.add_scalar(name, value, record.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[MetricsRecord]:
    """Read the records of a run, up to a line that a kill has cut."""
    path = folder / FILE_NAME
    return list(_parse(path.read_text(encoding="utf-8"))) if path.exists() else []


def diverged_at(records: Sequence[MetricsRecord]) -> int | None:
    """Return the step from whose record on no loss is finite; None where the last one is.

    Weights that such a run ends with are worth nothing.
    """
    step = None
    for record in reversed(records):
        if math.isfinite(record.loss):
            break
        step = record.step
    return step


def last_record(folder: Path) -> MetricsRecord | None:
    """Read the newest whole record of a run from the tail of its file."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode().splitlines()
    found = (record for line in reversed(lines) for record in _parse(line))
    return next(found, None)


def _parse(text: str) -> Iterator[MetricsRecord]:
    for line in text.splitlines():
        try:
            yield MetricsRecord(**json.loads(line))
        except (ValueError, TypeError):
            return


def _tensorboard(folder: Path, *, purge_step: int) -> "SummaryWriter":
    with warnings.catch_warnings():
        # TensorBoard imports pkg_resources or old protobuf code, which warn on every start.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=purge_step)


@contextmanager
def following(folder: Path, on_record: OnRecord) -> Iterator[None]:
    """Call `on_record` with each new record in a run's folder while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        seen = None
        while not ended.wait(_POLL_SECONDS):
            newest = last_record(folder)
            if newest is not None and newest != seen:
                seen = newest
                on_record(newest)

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
