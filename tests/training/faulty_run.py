"""Pretrain on a few images with a fault of one's choice; a rank finds itself in the environment.

python faulty_run.py SHARDS OUT [KEY=VALUE]...

Keys: nan_at=STEPS (NaN in the loss), grad_nan_at=STEPS (in one gradient only),
nan_once=STEP (the first time only), kill_at=STEP (SIGKILL before it), signal_at=STEP signal=NAME
(to this process), full_at=STEPS full_export=1 (a save, the export meet a full disk); rank=R is whom
the first ones befall; and any key of the config with its section: train.max_bad_steps=2.
"""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import torch

from cluster.screen import clear_errors
from pipeline.config import parse
from training import checkpoint, pretrain
from training.run import RunConfig, pretraining_of

RAW = {
    "seed": 3,
    "trunk": {"name": "small"},
    "order": {"global_batch": 12, "num_lanes": 3, "window": 30},  # 16 steps an epoch.
    "pretext": {
        "name": "jigsaw",
        "crop_px": 33,
        "tile_px": 10,
        "channel_shift_px": 1,
        "num_permutations": 10,
        "puzzles_per_image": 2,
    },
    "optim": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 1, "precision": "fp32", "log_every": 1, "checkpoint_every": 4},
}
RANK = int(os.environ.get("RANK", "0"))


def run_of(shards, out, changes):
    raw = {**json.loads(json.dumps(RAW)), "out": str(out), "data": {"manifest": str(shards)}}
    for path, value in changes.items():
        section, key = path.split(".")
        raw[section][key] = value
    return pretraining_of(parse(RunConfig, raw, "config"))


def install(out, faults):
    """Wrap a step and a loss: write down the samples, then do what is asked for."""
    at = {key: steps_of(faults, key) for key in ("nan_at", "nan_once", "grad_nan_at", "kill_at")}
    signal_at = steps_of(faults, "signal_at")
    step, loss, now = pretrain._step, pretrain._loss, {"step": -1}
    is_ours = int(faults.get("rank", 0)) == RANK
    ledger = (out / f"ids-{os.environ.get('WORLD_SIZE', '1')}-{RANK}.jsonl").open("a")

    def faulty_step(job, replica, batch, lr):
        now["step"] = job.step
        if job.step in at["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.step in signal_at and is_ours:
            os.kill(os.getpid(), getattr(signal, faults["signal"]))
        factor = float("nan") if job.step in at["grad_nan_at"] and is_ours else 1.0
        hook = next(job.model.parameters()).register_hook(lambda gradient: gradient * factor)
        result = step(job, replica, batch, lr)
        hook.remove()
        ledger.write(json.dumps([job.step, batch.sample_ids.tolist()]) + "\n")
        ledger.flush()
        return result

    def faulty_loss(output):
        is_bad = is_ours and now["step"] in at["nan_at"] + at["nan_once"]
        at["nan_once"] = [one for one in at["nan_once"] if one != now["step"]]
        return loss(output) * (float("nan") if is_bad else 1.0)

    pretrain._step, pretrain._loss = faulty_step, faulty_loss
    fill_disk(steps_of(faults, "full_at"), is_at_end="full_export" in faults)


def steps_of(faults, key):
    return [int(one) for one in faults.get(key, "").split(",") if one]


def fill_disk(at, *, is_at_end):
    """Let writes fail as on a full disk: those of a checkpoint, and of the trunk."""
    write, export = checkpoint._write, pretrain.write_atomic

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write_checkpoint(folder, one):
        (folder / "model.safetensors").write_bytes(b"cut")
        full(folder) if one.step in at else write(folder, one)

    checkpoint._write = write_checkpoint
    pretrain.write_atomic = lambda path, data: full(path) if is_at_end else export(path, data)


def main():
    torch.set_num_threads(1)
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    given = dict(one.split("=") for one in sys.argv[3:])
    changes = {key: value for key, value in given.items() if "." in key}
    install(out, {key: value for key, value in given.items() if "." not in key})
    with clear_errors():
        pretrain.train(run_of(shards, out, changes))


if __name__ == "__main__":
    main()
