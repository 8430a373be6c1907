import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from ray_nodes import family

from cluster.launch import pretrain_on_ray
from pipeline.config import ConfigError, parse
from pipeline.shards.damage import DamageError
from training.run import RunConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def config(shards, out, *, max_failures=0, workers=2):
    raw = {
        "out": str(out),
        "seed": 3,
        "data": {"manifest": str(shards)},
        "order": {"global_batch": 12, "num_lanes": 3, "window": 50},  # 2 ranks: 8 and 4 samples.
        "pretext": {"name": "jigsaw", "crop_px": 48, "tile_px": 14, "num_permutations": 20},
        "trunk": {"name": "small"},
        "optim": {"name": "sgd", "lr": 0.01},
        "train": {
            "epochs": 2,
            "workers": workers,
            "precision": "fp32",
            "log_every": 4,
            "checkpoint_every": 8,
            "max_failures": max_failures,
        },
    }
    Path(out).mkdir()
    return parse(RunConfig, raw, "test")


def summary(out):
    return json.loads((out / "pretrain.json").read_text())


def training_workers():
    """Of this test's Ray: another's, on the same machine, must live."""
    return [pid for pid in family(os.getpid()) if b"RayTrainWorker" in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_two_workers_train_and_a_killed_one_goes_on_from_the_checkpoint(shards, tmp_path):
    out = tmp_path / "out"
    killed = []

    def kill_one():
        while not list((out / "checkpoints").glob("step-*")):
            time.sleep(0.05)
        killed.append(training_workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    seen = []
    pretrain_on_ray(config(shards, out, max_failures=1), seen.append)
    killer.join(timeout=1)
    assert killed
    assert summary(out)["steps"] == 32  # 198 images: 16 steps of 12 an epoch.
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(4, 33, 4))
    assert seen[-1].step <= 32


def test_more_workers_than_the_cluster_has_are_refused_at_once(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"train.workers \(=3\) exceeds the 2 CPUs"):
        pretrain_on_ray(config(shards, tmp_path / "out", workers=3), lambda record: None)


def test_damage_found_by_a_worker_reaches_the_caller_with_its_name(own_shards, tmp_path):
    tar = own_shards / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[1500] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamageError, match=r"shard-000001\.tar, key \w+, offset \d+"):
        pretrain_on_ray(config(own_shards, tmp_path / "out"), lambda record: None)
