"""A small run, trained and transferred, for tests of what is told of it."""

import json
import shutil

import torch

from pipeline.config import parse
from pipeline.shards.manifest import Ledger, read_manifest, write_manifest
from training.pretrain import train
from training.run import RunConfig, open_run, pretraining_of
from training.transfer.evaluate import transfer

HOSTILE = "<script>alert(1)</script>.jpg"
QUARANTINED = {"truncated": 3, "not_image": 2}
FILTERED = {"min_side": 4}
JIGSAW = {"name": "jigsaw", "grid": 2, "crop_px": 64, "tile_px": 24, "channel_shift_px": 1}
JIGSAW |= {"num_permutations": 24, "gray_probability": 0.5, "puzzles_per_image": 2}
ROTATION = {"name": "rotation", "crop_px": 48, "mirror_probability": 1.0}
JOBS = (
    {"name": "svm", "map_side": 2, "costs": [0.01]},
    {"name": "low_shot", "shots": [1, 4], "draws": 2},
    {"name": "knn", "neighbours": [1, 5]},
    {"name": "retrieval", "neighbours": 3, "queries": 4},
)


def shards_with_losses(shards, folder):
    """Copy shards to a folder, whose ledger then tells of inputs left out."""
    shutil.copytree(shards, folder)
    manifest = read_manifest(folder)
    ledger = Ledger(
        inputs=manifest.num_samples + 15,
        accepted=manifest.num_samples,
        quarantined=QUARANTINED,
        filtered=FILTERED,
        duplicate=6,
    )
    write_manifest(folder, manifest.model_copy(update={"ledger": ledger, "sources": {}}))
    rows = [
        {"path": f"crawl/{HOSTILE}", "verdict": "quarantined", "reason": "truncated"},
        {"path": "crawl/half \ud83d.jpg", "verdict": "filtered", "reason": "min_side"},
        {"path": "crawl/a.jpg", "verdict": "duplicate", "winner": "crawl/b & c.jpg"},
        *({"path": f"{n}.jpg", "verdict": "quarantined", "reason": "empty"} for n in range(40)),
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def finish_run(folder, shards, pretext, jobs=JOBS, **section):
    """Train for an epoch and transfer; returns the config."""
    raw = {
        "out": str(folder),
        "seed": 1,
        "data": {"manifest": str(shards)},
        "trunk": {"name": "small"},
        "order": {"global_batch": 64, "num_lanes": 4, "window": 16},
        "pretext": pretext,
        "optim": {"name": "sgd", "lr": 0.01},
        "train": {"epochs": 1, "log_every": 1},
        "transfer": {"view_px": 48, "test_share": 0.4, "seeds": [1, 2], "jobs": jobs} | section,
    }
    config = parse(RunConfig, raw, "test")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # So small a job waits for its threads longer than it works.
    open_run(config, resume=False)
    train(pretraining_of(config))
    found = transfer(config, torch.device("cpu"), lambda *_: None)
    torch.set_num_threads(threads)
    assert not found.failures
    return config
