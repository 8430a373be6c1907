"""Pretraining: batches in, a trunk out. The loop comes first; the file reads top to bottom."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.atomic import write_atomic, write_json
from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.loading.data import check_data
from pipeline.loading.graph_runner import Batch
from pipeline.loading.loader import Loader, open_loader
from pipeline.loading.mixture import RankInfo
from pipeline.loading.quarantine import FILE_NAME as QUARANTINE_FILE
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import PretextConfig, tasks_of, weights_of
from pipeline.pretext.permutation_set import permutations_hash
from pipeline.pretext.supervised import NO_CLASS
from training.checkpoint import Checkpoint, load_newest, save_checkpoint
from training.ddp import Ranks, joined
from training.metrics import Meter, MetricsWriter, PretrainResult, StepResult, read_metrics
from training.models.pretext_model import HeadOutput, PretextModel, build_model
from training.models.trunks import Trunk
from training.optimizer import build_optimizer, learning_rate
from training.precision import autocast
from training.run import Pretraining, TrainConfig
from training.run_folder import PRETRAIN_RESULT, TRUNK_FILE

CHECKPOINTS = "checkpoints"

_COMPILERS = ("g++", "clang++", "c++")


def train(run: Pretraining) -> None:
    """Pretrain a trunk; resume from the newest checkpoint in `run.out` if there is one.

    The same function runs in one plain process, under torchrun and under Ray Train. Rank 0 writes
    metrics.jsonl, checkpoints, trunk.safetensors and pretrain.json into `run.out`.
    """
    with joined() as ranks:
        job = _start(run, ranks)
        with closing(job.loader), _metrics_of(job) as log:
            _loop(job, log)
        if ranks.is_first:
            export_trunk(job.model.trunk, run.out / TRUNK_FILE)
            write_json(run.out / PRETRAIN_RESULT, asdict(_summarize(job)))
        ranks.barrier()


def _loop(job: _TrainState, log: MetricsWriter | None) -> None:
    run, ranks = job.run, job.ranks
    model = ranks.wrap(job.model).train()
    meter = Meter(ranks, job.loader, [task.name for task in tasks_of(run.pretext)])
    batches = job.loader.batches(
        GraphOptions(
            max_batch=job.loader.max_batch,
            num_threads=run.data.threads,
            device_id=ranks.device.index,
            prefetch=run.data.prefetch,
        )
    )
    progress = job.clock.progress(job.step)
    while progress < 1:
        asked = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - asked

        lr = learning_rate(run.optim, progress)
        result = _step(job, model, batch, lr)
        job.step += 1
        progress = job.clock.progress(job.step)

        meter.add(result, len(batch.sample_ids), waited)
        if job.step % run.train.log_every == 0 or progress >= 1:
            record = meter.record(job.step, batch.epoch, progress, job.clock.spent(), lr)
            if log:
                log.write(record)
        if (job.step % run.train.checkpoint_every == 0 or progress >= 1) and ranks.is_first:
            _save(job)


def _step(job: _TrainState, model: nn.Module, batch: Batch, lr: float) -> StepResult:
    device = job.ranks.device
    for group in job.optimizer.param_groups:
        group["lr"] = lr
    labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
    with autocast(job.run.train.precision, device):
        outputs: list[HeadOutput] = model(batch.views, labels)
    losses = [_loss(output) for output in outputs]
    loss = torch.stack(losses) @ torch.tensor(weights_of(job.run.pretext), device=device)
    job.optimizer.zero_grad(set_to_none=True)
    # DDP averages over ranks, and a rank's batch may be one lane's share larger than another's:
    # weighted by size, the average is the gradient of the global batch.
    share = len(batch.sample_ids) * job.ranks.world_size / job.loader.global_batch
    torch.autograd.backward(loss * share)
    job.optimizer.step()
    return StepResult(loss.detach(), torch.stack([_accuracy(output) for output in outputs]))


def _loss(output: HeadOutput) -> Tensor:
    """Return the cross entropy averaged over all answers; those without a target count as 0.

    Dividing by all of them makes the mean over ranks that of the global batch.
    """
    total = F.cross_entropy(
        output.logits.float(), output.targets, ignore_index=NO_CLASS, reduction="sum"
    )
    return total / len(output.targets)


def _accuracy(output: HeadOutput) -> Tensor:
    """Return the share of right answers among those with a target."""
    has_target = output.targets != NO_CLASS
    right = (output.logits.argmax(dim=1) == output.targets) & has_target
    return right.sum() / has_target.sum().clamp(min=1)


@dataclass(slots=True)
class _TrainState:
    """Everything the loop works on."""

    run: Pretraining
    ranks: Ranks
    loader: Loader
    model: PretextModel
    optimizer: torch.optim.Optimizer
    step: int
    """Steps done."""
    clock: _Clock


def _start(run: Pretraining, ranks: Ranks) -> _TrainState:
    # Data.
    rank_info, ledger = RankInfo(ranks.rank, ranks.world_size), run.out / QUARANTINE_FILE
    loader = open_loader(
        run.data, run.order, run.pretext, seed=run.seed, rank_info=rank_info, ledger=ledger
    )

    # Model. Every rank starts from the same weights.
    torch.manual_seed(run.seed)
    model = build_model(run.pretext, run.trunk).to(ranks.device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, run.optim)

    # Resume.
    perms = _permutations(run.pretext)
    step, seconds = 0, 0.0
    checkpoint = load_newest(run.out / CHECKPOINTS)
    if checkpoint:
        if checkpoint.progress.get("permutations_sha256", perms) != perms:
            raise ConfigError(
                f"the permutation set has changed since the checkpoint of step {checkpoint.step}, "
                "and with it what every label means; give the old permutation_file or start anew."
            )
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
        loader.restore(checkpoint.progress["loader"])
        step, seconds = checkpoint.step, checkpoint.progress["seconds"]
    if run.train.compile:
        model.compile()  # In place: names of weights stay, in checkpoints and the export.
    clock = _Clock(run.train, ranks, run.train.epochs * loader.steps_per_epoch, seconds)
    return _TrainState(run, ranks, loader, model, optimizer, step, clock)


def _permutations(pretext: PretextConfig) -> str | None:
    """Return the SHA-256 of the permutation set, or None for a pretext without a puzzle."""
    puzzles = [task for task in tasks_of(pretext) if isinstance(task, JigsawConfig)]
    return permutations_hash(permutations_of(puzzles[0])) if puzzles else None


class _Clock:
    """How much of a run is done, by steps or by time; the same on every rank."""

    def __init__(self, train: TrainConfig, ranks: Ranks, last_step: int, seconds: float) -> None:
        self._limit = train.max_minutes * 60 if train.max_minutes else None
        self._ranks, self._last_step = ranks, last_step
        self._started = time.monotonic() - seconds

    def spent(self) -> float:
        """Return the training time so far, in seconds."""
        return time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """Return the share of the run that is done after `step` steps, 0 to 1."""
        by_step = step / self._last_step
        if self._limit is None:
            return by_step
        by_time = self._ranks.from_first(self.spent() / self._limit)
        return min(1.0, max(by_step, by_time))


def _metrics_of(job: _TrainState) -> AbstractContextManager[MetricsWriter | None]:
    if job.ranks.is_first:
        return MetricsWriter(job.run.out, resume_step=job.step)
    return nullcontext()


def _save(job: _TrainState) -> None:
    progress = {
        "loader": job.loader.state(),
        "seconds": job.clock.spent(),
        "permutations_sha256": _permutations(job.run.pretext),
    }
    model, optimizer = job.model.state_dict(), job.optimizer.state_dict()
    save_checkpoint(job.run.out / CHECKPOINTS, Checkpoint(job.step, model, optimizer, progress))


def export_trunk(trunk: Trunk, path: Path) -> None:
    """Write the trunk's weights as safetensors under torchvision's key names."""
    weights = {key: value.cpu() for key, value in trunk.export().items()}
    write_atomic(path, safetensors.torch.save(weights))


def _summarize(job: _TrainState) -> PretrainResult:
    records = read_metrics(job.run.out)
    last = records[-max(1, len(records) // 10) :]
    images = job.step * job.loader.global_batch
    return PretrainResult(
        steps=job.step,
        epochs=job.step / job.loader.steps_per_epoch,
        seconds=records[-1].seconds,
        images_per_s=images / records[-1].seconds,
        starvation=sum(r.starvation for r in records) / len(records),
        loss=sum(r.loss for r in last) / len(last),
        accuracy=sum(r.accuracy for r in last) / len(last),
        chance=job.run.pretext.chance,
        remainder=job.loader.remainder,
        replaced=sum(r.replaced for r in records),
        accuracy_of={
            name: sum(r.accuracy_of[name] for r in last) / len(last) for name in last[0].accuracy_of
        },
        permutations_sha256=_permutations(job.run.pretext),
    )


def check(run: Pretraining) -> None:
    """Find what would stop the run before anything is started.

    Raises:
        ConfigError: The shards are missing or too few, there are more workers than lanes, a
            permutation file holds no such set, or train.compile finds no compiler.
    """
    _permutations(run.pretext)
    if run.train.compile and not any(map(shutil.which, _COMPILERS)):
        raise ConfigError(
            "train.compile (=true) needs a C++ compiler, and there is none on the PATH "
            f"({', '.join(_COMPILERS)}); install one or set it to false."
        )
    check_data(run.data, run.order, seed=run.seed, world_size=run.train.workers)
