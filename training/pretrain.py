"""Pretraining: batches in, a trunk out. The loop comes first; the file reads top to bottom."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

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
from training.checkpoint import (
    Checkpoint,
    is_finite,
    load_newest,
    remove_partial,
    save_checkpoint,
)
from training.ddp import Ranks, Replica, joined
from training.faults import (
    BAD_STEPS,
    Asked,
    DivergedError,
    StoppedError,
    log_bad_step,
    stop_requests,
)
from training.metrics import Meter, MetricsWriter, PretrainResult, StepResult, read_metrics
from training.models.pretext_model import HeadOutput, PretextModel, build_model
from training.models.trunks import Trunk
from training.optimizer import build_optimizer, learning_rate
from training.precision import autocast
from training.run import Pretraining, TrainConfig
from training.run_folder import PRETRAIN_RESULT, TRUNK_FILE

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

_COMPILERS = ("g++", "clang++", "c++")


def train(run: Pretraining) -> None:
    """Pretrain a trunk; resume from the newest checkpoint in `run.out` if there is one.

    The same function runs in one plain process, under torchrun and under Ray Train. Rank 0 writes
    metrics.jsonl, checkpoints, trunk.safetensors and pretrain.json into `run.out`.

    Raises:
        StoppedError: A signal, or a file STOP_FILE, stopped the run; a checkpoint was written.
        DivergedError: Gradients or weights are not finite, and going back did not help.
    """
    with joined() as ranks, stop_requests(run.out) as asked:
        if ranks.is_first:
            remove_partial(run.out)
        job = _start(run, ranks, asked)
        with closing(job.loader), _metrics_of(job) as log:
            _loop(job, log)
        try:
            if ranks.is_first:
                export_trunk(job.model.trunk, run.out / TRUNK_FILE)
                write_json(run.out / PRETRAIN_RESULT, asdict(_summarize(job)))
        finally:
            ranks.barrier()  # The others must not be lost with a first one whose disk is full.


def _loop(job: _TrainState, log: MetricsWriter | None) -> None:
    run = job.run
    replica = job.ranks.wrap(job.model.train())
    meter = Meter(job.ranks, job.loader, [task.name for task in tasks_of(run.pretext)])
    batches = _batches(job)
    progress = job.clock.progress(job.step)
    while progress < 1:
        asked = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - asked

        lr = learning_rate(run.optim, progress) * job.faults.lr_scale
        result = _step(job, replica, batch, lr)
        job.step += 1
        progress = job.clock.progress(job.step, result.time_spent)

        meter.add(result, len(batch.sample_ids), waited)
        if _must_go_back(job, batch, result):
            _go_back(job, log)
            meter.restart()
            batches, progress = _batches(job), job.clock.progress(job.step)
            continue
        is_last = progress >= 1 or result.must_stop
        if (job.step % run.train.log_every == 0 or is_last) and meter.has_steps:
            record = meter.record(job.step, batch.epoch, progress, job.clock.spent(), lr)
            if log:
                log.write(record)
        # Not after a skipped step: the checkpoint to go back to lies before the first of them.
        is_due = job.step % run.train.checkpoint_every == 0 and result.is_finite
        if (is_due or is_last) and job.ranks.is_first:
            _save(job)
        if result.must_stop and progress < 1:
            _stop(job)


def _step(job: _TrainState, replica: Replica, batch: Batch, lr: float) -> StepResult:
    device = job.ranks.device
    for group in job.optimizer.param_groups:
        group["lr"] = lr
    labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
    statistics = [buffer.clone() for buffer in job.model.buffers()]
    with autocast(job.run.train.precision, device):
        outputs: list[HeadOutput] = replica(batch.views, labels)
    losses = [_loss(output) for output in outputs]
    loss = torch.stack(losses) @ torch.tensor(weights_of(job.run.pretext), device=device)
    job.optimizer.zero_grad(set_to_none=True)
    # DDP averages over ranks, and a rank's batch may be one lane's share larger than another's:
    # weighted by size, the average is the gradient of the global batch. Where the loss is not
    # finite, the weight is NaN, which reaches every gradient, and by the average every rank.
    share = len(batch.sample_ids) * job.ranks.world_size / job.loader.global_batch
    weight = share + _zero(job, loss)
    riders = replica.backward(loss * weight, (float(job.asked()), job.clock.share_of_time()))
    applies = _clipped(job)
    if applies:
        job.optimizer.step()
    else:
        for buffer, before in zip(job.model.buffers(), statistics, strict=True):
            buffer.copy_(before)
    accuracies = torch.stack([_accuracy(output) for output in outputs])
    return StepResult(loss.detach(), accuracies, applies, riders[0] > 0, riders[1])


def _zero(job: _TrainState, loss: Tensor) -> Tensor:
    """Return 0, or NaN where the loss or a BatchNorm's statistics are not finite."""
    statistics = [buffer for buffer in job.model.buffers() if buffer.is_floating_point()]
    return 0 * (loss.detach() + torch.nn.utils.get_total_norm(statistics).to(loss))


def _clipped(job: _TrainState) -> bool:
    """Clip the gradient if the run asks for it; return whether it is finite."""
    weights = [weight for weight in job.model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    applies = bool(norm.isfinite())
    if applies and job.run.train.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(weights, job.run.train.clip_norm, norm)
    return applies


def _must_go_back(job: _TrainState, batch: Batch, result: StepResult) -> bool:
    """Count and log a step that was skipped, alike on every rank."""
    faults, ranks = job.faults, job.ranks
    if result.is_finite:
        faults.in_a_row = 0
        return False
    faults.in_a_row += 1
    ids = ranks.gather(torch.from_numpy(batch.sample_ids).to(ranks.device))
    losses = ranks.gather(result.loss[None].double())
    bad = [rank for rank, loss in enumerate(losses) if not loss.isfinite().all()]
    if ranks.is_first:
        record = {
            "step": job.step,
            "epoch": batch.epoch,
            "in_a_row": faults.in_a_row,
            "ranks_with_bad_loss": bad,
            "sample_ids": [part.tolist() for part in ids],
        }
        log_bad_step(job.run.out, record)
        where = f"the loss of rank {', '.join(map(str, bad))}" if bad else "the gradient"
        logger.warning(
            "step %d is skipped: %s is not finite (%d in a row)", job.step, where, faults.in_a_row
        )
    return faults.in_a_row >= job.run.train.max_bad_steps


def _go_back(job: _TrainState, log: MetricsWriter | None) -> None:
    """Go back to the newest checkpoint, or to the start, with a smaller learning rate.

    Raises:
        DivergedError: The run went back train.max_rollbacks times already.
    """
    train, faults, step = job.run.train, job.faults, job.step
    if faults.rollbacks == train.max_rollbacks:
        raise DivergedError(
            f"step {step}: no finite loss and gradient for {faults.in_a_row} steps in a row "
            f"(train.max_bad_steps), after going back {faults.rollbacks} times "
            f"(train.max_rollbacks); {job.run.out / BAD_STEPS} names the samples. Lower optim.lr."
        )
    scale, rollbacks = faults.lr_scale * train.rollback_lr_scale, faults.rollbacks + 1
    _restore(job, load_newest(job.run.out / CHECKPOINTS))
    job.faults = Faults(rollbacks=rollbacks, lr_scale=scale)
    if log:
        log.rewind(job.step)
        logger.warning(
            "back from step %d to %d, with %g times the learning rate", step, job.step, scale
        )


def _stop(job: _TrainState) -> None:
    """End the run on every rank, after rank 0 has saved."""
    job.ranks.barrier()
    raise StoppedError(f"stopped after step {job.step}; the same command with --resume continues.")


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
class Faults:
    """Steps without a finite gradient, and what was done about them; part of a checkpoint."""

    in_a_row: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0


@dataclass(slots=True)
class _TrainState:
    """Everything the loop works on."""

    run: Pretraining
    ranks: Ranks
    loader: Loader
    model: PretextModel
    optimizer: torch.optim.Optimizer
    clock: _Clock
    asked: Asked
    """Whether this process is asked to stop."""
    step: int = 0
    """Steps done."""
    faults: Faults = field(default_factory=Faults)


def _start(run: Pretraining, ranks: Ranks, asked: Asked) -> _TrainState:
    # Data.
    rank_info, ledger = RankInfo(ranks.rank, ranks.world_size), run.out / QUARANTINE_FILE
    loader = open_loader(
        run.data, run.order, run.pretext, seed=run.seed, rank_info=rank_info, ledger=ledger
    )

    # Model and optimizer.
    model = _fresh_model(run).to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, run.optim)
    clock = _Clock(run.train, ranks, run.train.epochs * loader.steps_per_epoch)
    job = _TrainState(run, ranks, loader, model, optimizer, clock, asked)

    # Resume.
    checkpoint = load_newest(run.out / CHECKPOINTS)
    if checkpoint:
        _restore(job, checkpoint)
    if run.train.compile:
        model.compile()  # In place: names of weights stay, in checkpoints and the export.
    clock.start(checkpoint.progress["seconds"] if checkpoint else 0.0)
    return job


def _fresh_model(run: Pretraining) -> PretextModel:
    """Make the model of step 0, the same on every rank."""
    torch.manual_seed(run.seed)
    return build_model(run.pretext, run.trunk)


def _restore(job: _TrainState, checkpoint: Checkpoint | None) -> None:
    """Go to a checkpoint, or with None to the start."""
    if checkpoint is None:
        job.model.load_state_dict(_fresh_model(job.run).state_dict())
        job.optimizer.state.clear()
        job.loader.restore({**job.loader.state(), "epoch": 0, "step": 0})
        job.step = 0
        return
    perms = _permutations(job.run.pretext)
    if checkpoint.progress.get("permutations_sha256", perms) != perms:
        raise ConfigError(
            f"the permutation set has changed since the checkpoint of step {checkpoint.step}, "
            "and with it what every label means; give the old permutation_file or start anew."
        )
    job.model.load_state_dict(checkpoint.model)
    job.optimizer.load_state_dict(checkpoint.optimizer)
    job.loader.restore(checkpoint.progress["loader"])
    job.faults = Faults(**checkpoint.progress.get("faults", {}))
    job.step = checkpoint.step


def _batches(job: _TrainState) -> Iterator[Batch]:
    options = GraphOptions(
        max_batch=job.loader.max_batch,
        num_threads=job.run.data.threads,
        device_id=job.ranks.device.index,
        prefetch=job.run.data.prefetch,
    )
    return job.loader.batches(options)


def _permutations(pretext: PretextConfig) -> str | None:
    """Return the SHA-256 of the permutation set, or None for a pretext without a puzzle."""
    puzzles = [task for task in tasks_of(pretext) if isinstance(task, JigsawConfig)]
    return permutations_hash(permutations_of(puzzles[0])) if puzzles else None


class _Clock:
    """How much of a run is done, by steps or by time; the same on every rank."""

    def __init__(self, train: TrainConfig, ranks: Ranks, last_step: int) -> None:
        self._limit = train.max_minutes * 60 if train.max_minutes else None
        self._is_first, self._last_step = ranks.is_first, last_step
        self.start(0.0)

    def start(self, seconds: float) -> None:
        """Start after `seconds` of training in earlier processes."""
        self._seconds, self._started = seconds, time.monotonic() - seconds

    def spent(self) -> float:
        """Return the training time so far, in seconds."""
        return time.monotonic() - self._started

    def share_of_time(self) -> float:
        """Return the share of the time that is spent on rank 0; 0 on others and without a limit."""
        return self.spent() / self._limit if self._limit and self._is_first else 0.0

    def progress(self, step: int, time_spent: float | None = None) -> float:
        """Return the share of the run that is done after `step` steps, 0 to 1.

        Args:
            step: Steps done.
            time_spent: Rank 0's `share_of_time`; None for that of the start.
        """
        if time_spent is None:
            time_spent = self._seconds / self._limit if self._limit else 0.0
        return min(1.0, max(step / self._last_step, time_spent))


def _metrics_of(job: _TrainState) -> AbstractContextManager[MetricsWriter | None]:
    if job.ranks.is_first:
        return MetricsWriter(job.run.out, resume_step=job.step)
    return nullcontext()


def _save(job: _TrainState) -> None:
    """Save a checkpoint; without room on the disk, training goes on and the next save tries again.

    What is not finite is never saved: the next steps will be skipped, and the run goes back.
    """
    train, folder = job.run.train, job.run.out / CHECKPOINTS
    progress = {
        "loader": job.loader.state(),
        "seconds": job.clock.spent(),
        "permutations_sha256": _permutations(job.run.pretext),
        "faults": asdict(job.faults),
    }
    model, optimizer = job.model.state_dict(), job.optimizer.state_dict()
    if not is_finite(model):
        logger.warning("step %d is not saved: its weights are not finite", job.step)
        return
    try:
        save_checkpoint(
            folder,
            Checkpoint(job.step, model, optimizer, progress),
            keep=train.checkpoint_keep,
            keep_every=train.checkpoint_keep_every,
        )
    except OSError as error:
        logger.warning(
            "no checkpoint of step %d (%s); training goes on, and tries again in %d steps",
            job.step,
            error.strerror or error,
            train.checkpoint_every,
        )


def export_trunk(trunk: Trunk, path: Path) -> None:
    """Write the trunk's weights as safetensors under torchvision's key names.

    Raises:
        DivergedError: They are not finite.
    """
    weights = {key: value.cpu() for key, value in trunk.export().items()}
    if not is_finite(weights):
        raise DivergedError(f"{path} is not written: the trunk's weights are not finite.")
    write_atomic(path, safetensors.torch.save(weights))


def _summarize(job: _TrainState) -> PretrainResult:
    records = read_metrics(job.run.out)
    if not records:
        raise DivergedError("no step had a finite loss and gradient; nothing was learnt.")
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
