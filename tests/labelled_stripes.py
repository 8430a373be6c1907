"""A small set that any trunk can learn: stripes of random colours that lie, stand or lean."""

import io

import numpy as np
import torch
from PIL import Image

from pipeline.ingest.config import ShardConfig
from pipeline.shards.store import Store
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.job import Labelled, NamedTrunk, Setting, TransferTask

CLASSES = ("leaning", "lying", "standing")
PX = 32


def stripes(kind, seed):
    """Encode 64 px of stripes; PNG, so that no block edge shows the way."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:64, :64]
    place = {"lying": down, "standing": right, "leaning": (down + right) / 2**0.5}[kind]
    wave = np.sin(place * 2 * np.pi / rng.uniform(6, 9) + rng.uniform(0, 6))[..., None]
    pixels = 128 + wave * rng.uniform(-90, 90, 3) + rng.normal(0, 12, (64, 64, 3))
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def striped_task(make_shards, folder, *, per_class=24, test_per_class=8):
    """Shard the images below `folder`, and split them."""
    for label, kind in enumerate(CLASSES):
        for number in range(per_class + test_per_class):
            path = folder / "crawl" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stripes(kind, 1000 * label + number))
    make_shards(folder / "crawl", folder / "shards", ShardConfig(samples_per_shard=50))
    store = Store(folder / "shards")
    labels = store.labels()
    members = [np.flatnonzero(labels == k) for k in range(len(CLASSES))]
    train = np.concatenate([ids[test_per_class:] for ids in members])
    test = np.concatenate([ids[:test_per_class] for ids in members])
    sides = (Labelled(store, train, labels[train]), Labelled(store, test, labels[test]))
    return TransferTask(*sides, classes=CLASSES, overlap={})


def multi_label(task, difficult=()):
    """Let an image show its class, and the class before it be difficult in the given rows."""

    def several(side):
        targets = np.eye(len(CLASSES), dtype=np.int64)[side.targets]
        for row in difficult:
            targets[row, side.targets[row] - 1] = -1
        return Labelled(side.store, side.sample_ids, targets)

    return TransferTask(several(task.train), several(task.test), task.classes, task.overlap)


def setting_of(task, folder, seeds=(0,)):
    return Setting(
        task=task,
        device=torch.device("cpu"),
        view_px=PX,
        seeds=seeds,
        batch=32,
        threads=1,
        precision="fp32",
        folder=folder,
    )


def random_trunk(name="small", px=PX):
    def build(seed):
        torch.manual_seed(seed)
        return build_trunk(TrunkConfig(name=name), use="transfer", view_px=px)

    return NamedTrunk("random", "random", build, draws_weights=True)


def ignore_progress(*_):
    """Discard progress."""
