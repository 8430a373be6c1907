import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError, parse
from pipeline.ingest.config import ShardConfig
from pipeline.loading.data import DataConfig, with_classes
from pipeline.pretext.draws import Draws
from pipeline.pretext.supervised import (
    NO_CLASS,
    SupervisedConfig,
    hash_keys,
    held_out,
    plan_supervised,
    taught_classes,
)
from pipeline.shards.store import Store
from training.models.pretext_model import HeadOutput, build_model
from training.models.trunks import TrunkConfig
from training.pretrain import _accuracy, _loss, check, train
from training.run import RunConfig, pretraining_of
from training.transfer.evaluate import open_transfer, transfer

CPU = torch.device("cpu")


def run_of(out, shards, **changes):
    raw = {
        "out": out,
        "seed": 0,
        "data": {"manifest": shards},
        "order": {"global_batch": 33, "num_lanes": 1, "window": 99},
        "pretext": {"name": "supervised", "crop_px": 32, **changes},
        "trunk": {"name": "small"},
        "optim": {"name": "adamw", "lr": 0.002},
        "train": {"epochs": 4, "log_every": 1},
    }
    return parse(RunConfig, raw, "config")


@given(keys=st.lists(st.text(max_size=8), max_size=20), share=st.floats(0, 0.99))
def test_held_out_are_the_images_that_a_transfer_tests_on(keys, share):
    expected = hash_keys(keys) < np.uint64(share * 2**64)
    assert held_out(keys, share).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.floats(0, 0.9))
def test_a_view_is_a_square_inside_and_a_label_is_taught_or_not(batch, seed, holdout):
    rng = np.random.default_rng(seed)
    heights, widths = rng.integers(20, 300, (2, batch)).astype(np.int32)
    config = SupervisedConfig(name="supervised", crop_px=32, holdout=holdout)
    plan = plan_supervised(config, heights, widths, Draws(seed, 0, np.arange(batch)))
    top, left, height, width = plan.crops.T
    assert (height == width).all()
    assert (np.minimum(top, left) >= 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()
    labels = rng.integers(-1, 3, batch)
    keys = [f"{seed}/{n}" for n in range(batch)]
    taught = taught_classes(config, keys, labels)[:, 0]
    out = held_out(keys, holdout)
    assert (taught == np.where(out, NO_CLASS, labels)).all()


def test_what_is_not_taught_counts_nothing_and_all_of_it_is_no_loss():
    logits = torch.randn(6, 3, requires_grad=True)
    targets = torch.tensor([0, 1, NO_CLASS, 2, NO_CLASS, 1])
    loss = _loss(HeadOutput(logits, targets))
    taught = targets != NO_CLASS
    alone = torch.nn.functional.cross_entropy(logits[taught], targets[taught])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()) * 4 / 6)
    loss.backward()
    assert not logits.grad[~taught].any()
    nothing = HeadOutput(logits, torch.full((6,), NO_CLASS))
    assert (float(_loss(nothing).detach()), float(_accuracy(nothing))) == (0, 0)
    right = HeadOutput(torch.eye(3), torch.tensor([0, NO_CLASS, 1]))
    assert float(_accuracy(right)) == 0.5


def test_the_number_of_classes_is_that_of_the_manifest(tmp_path, shards):
    run = pretraining_of(run_of(tmp_path, shards))
    assert run.pretext.num_classes == 4
    assert run.pretext.chance == 0.25
    model = build_model(run.pretext, TrunkConfig(name="small"))
    assert model.heads[0].classify.out_features == 4
    with pytest.raises(ConfigError, match=r"pretext.classes \(=7\) must be the 4"):
        pretraining_of(run_of(tmp_path, shards, classes=7))


def test_shards_without_labels_are_refused_in_one_line(tmp_path, shards, make_shards):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(flat / f"{number}.jpg")
    make_shards(flat, tmp_path / "shards", ShardConfig())
    with pytest.raises(ConfigError, match=r"has 0 classes, the pretext supervised") as caught:
        pretraining_of(run_of(tmp_path, tmp_path / "shards"))
    assert "\n" not in str(caught.value)
    both = {"mixture": [{"manifest": str(p), "weight": 1} for p in (shards, tmp_path / "shards")]}
    data = DataConfig(**both)
    with pytest.raises(ConfigError, match=r"has other classes than"):
        with_classes(SupervisedConfig(name="supervised"), data)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("supervised")
    config = run_of(out, shards, holdout=0.3)
    check(pretraining_of(config))
    out.joinpath("config.yaml").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    train(pretraining_of(config))
    return out


def test_supervised_pretraining_learns_what_it_is_taught(trained):
    result = json.loads((trained / "pretrain.json").read_text())
    assert result["chance"] == 0.25
    assert result["accuracy"] > 0.35


@pytest.mark.parametrize(("test_share", "seen"), [(0.3, False), (0.5, True)])
def test_a_transfer_says_what_its_supervised_trunk_has_seen(
    trained, shards, tmp_path, test_share, seen
):
    raw = {
        "out": tmp_path,
        "seed": 0,
        "data": {"manifest": shards},
        "trunk": {"name": "small"},
        "transfer": {
            "view_px": 32,
            "test_share": test_share,
            "trunks": ["random", "supervised"],
            "supervised": trained,
            "jobs": [{"name": "knn", "neighbours": [1]}],
        },
    }
    config = parse(RunConfig, raw, "config")
    task = open_transfer(config, CPU).setting.task
    keys = np.array(Store(shards).keys())
    expected = int((~held_out(keys[task.test.sample_ids], 0.3)).sum())
    assert task.overlap["supervised/test"] == expected
    assert (expected > 0) == seen
    if not seen:
        found = transfer(config, CPU, lambda *now: None)
        assert {entry["trunk"] for entry in found.entries} == {"random", "supervised"}
