import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.config import ConfigError, parse
from pipeline.pretext.permutation_set import make_permutations, permutations_hash
from training.checkpoint import load_newest
from training.metrics import PretrainResult, read_metrics
from training.optimizer import learning_rate
from training.pretrain import check, train
from training.run import RunConfig, pretraining_of

HALF = 5


def run_of(shards, out, **changes):
    raw = {
        "out": out,
        "seed": 3,
        "data": {"manifest": shards},
        "trunk": {"name": "small"},
        "order": {"global_batch": 16, "num_lanes": 4, "window": 32},  # 12 steps per epoch
        "pretext": {
            "name": "jigsaw",
            "crop_px": 33,
            "tile_px": 10,
            "channel_shift_px": 1,
            "num_permutations": 10,
            "puzzles_per_image": 2,
        },
        "optim": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1, "precision": "fp32", "log_every": 3, "checkpoint_every": HALF},
    }
    for path, value in changes.items():
        section, key = path.split("__")
        raw[section][key] = value
    return pretraining_of(parse(RunConfig, raw, "config"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """An uninterrupted run of 12 steps, with checkpoints of steps 10 and 12."""
    out = tmp_path_factory.mktemp("whole") / "out"
    out.mkdir()
    train(run_of(shards, out))
    return out


def weights(folder):
    return safetensors.torch.load_file(folder / "trunk.safetensors")


def checkpoint(folder):
    """Model and optimizer of the last step."""
    newest = folder / "checkpoints/step-00000012"
    loaded = load_newest(folder / "checkpoints")
    assert (loaded.step, newest.exists()) == (12, True)
    return loaded.model, loaded.optimizer


def assert_bit_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_same_run_again_gives_the_same_bits(whole, shards, tmp_path):
    train(run_of(shards, tmp_path))
    assert_bit_equal(weights(tmp_path), weights(whole))
    assert_bit_equal(checkpoint(tmp_path)[0], checkpoint(whole)[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(shards, tmp_path, optimizer):
    # 6 steps, stop, 6 steps; the folder at step 6 is what a kill right after it leaves.
    steady, stopped = tmp_path / "steady", tmp_path / "stopped"
    changes = {"optim__name": optimizer, "train__checkpoint_every": 6}
    steady.mkdir()
    stopped.mkdir()
    train(run_of(shards, steady, **changes))
    shutil.copytree(steady / "checkpoints/step-00000006", stopped / "checkpoints/step-00000006")
    shutil.copy(steady / "metrics.jsonl", stopped)  # Holds records of steps 9 and 12.
    train(run_of(shards, stopped, **changes))

    assert_bit_equal(weights(stopped), weights(steady))
    (model, optim), (steady_model, steady_optim) = checkpoint(stopped), checkpoint(steady)
    assert_bit_equal(model, steady_model)
    assert optim["param_groups"] == steady_optim["param_groups"]
    for number, state in steady_optim["state"].items():
        assert_bit_equal(optim["state"][number], state)
    records, expected = read_metrics(stopped), read_metrics(steady)
    assert [record.step for record in records] == [3, 6, 9, 12]
    for ours, theirs in zip(records, expected, strict=True):
        assert (ours.loss, ours.accuracy, ours.lr) == (theirs.loss, theirs.accuracy, theirs.lr)


def test_without_the_first_half_the_bits_differ(whole, shards, tmp_path):
    # The test above would pass for a run that ignored its data; this one would not.
    train(run_of(shards, tmp_path, order__window=16))
    assert not torch.equal(weights(tmp_path)["conv1.weight"], weights(whole)["conv1.weight"])


def test_a_finished_run_is_not_trained_further(whole, shards, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = weights(out)
    train(run_of(shards, out))
    assert_bit_equal(weights(out), before)
    assert [record.step for record in read_metrics(out)] == [3, 6, 9, 12]


def test_the_summary_says_how_the_run_ended(whole):
    summary = json.loads((whole / "pretrain.json").read_text())
    assert set(summary) == {field.name for field in fields(PretrainResult)}
    assert (summary["steps"], summary["epochs"], summary["remainder"]) == (12, 1, 6)
    assert summary["chance"] == 0.1
    assert 0 <= summary["accuracy"] <= 1
    assert 0 < summary["starvation"] < 1
    last = read_metrics(whole)[-1]
    assert (summary["loss"], summary["seconds"]) == (last.loss, last.seconds)
    perms = make_permutations("max_min", 9, 10, seed=0)
    assert summary["permutations_sha256"] == permutations_hash(perms)
    assert summary["images_per_s"] == pytest.approx(12 * 16 / last.seconds)


def test_the_optimizer_follows_the_schedule(whole, shards, tmp_path):
    config = run_of(shards, tmp_path).optim
    rates = [record.lr for record in read_metrics(whole)]
    assert rates == [learning_rate(config, step / 12) for step in (2, 5, 8, 11)]
    assert [group["lr"] for group in checkpoint(whole)[1]["param_groups"]] == [rates[-1]] * 2


def test_a_run_leaves_only_whole_files(whole):
    left = sorted(path.name for path in whole.iterdir())
    assert left == [
        "checkpoints",
        "metrics.jsonl",
        "pretrain.json",
        "tensorboard",
        "trunk.safetensors",
    ]
    kept = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000012"]


def test_training_learns_the_pretext(shards, tmp_path):
    # Two puzzles far apart: a few steps must beat a blind guess by far more than luck.
    changes = {
        "pretext__crop_px": 60,
        "pretext__tile_px": 16,
        "pretext__num_permutations": 2,
        "optim__name": "adamw",
        "optim__lr": 0.001,
        "train__epochs": 3,
    }
    train(run_of(shards, tmp_path, **changes))
    last = read_metrics(tmp_path)[6:]  # 576 answers: luck alone is off by 0.02.
    assert sum(record.accuracy for record in last) / len(last) > 0.6


def test_minutes_bound_a_run_that_has_many_epochs(shards, tmp_path):
    bound = {"train__epochs": 100_000, "train__max_minutes": 0.04, "train__log_every": 1}
    train(run_of(shards, tmp_path, **bound))
    records = read_metrics(tmp_path)
    assert records[-1].progress == 1
    assert records[-1].lr < records[len(records) // 2].lr  # The rate followed the clock.
    assert 2.4 <= records[-1].seconds < 30
    assert (tmp_path / "trunk.safetensors").exists()


def test_a_resume_with_another_order_is_refused(whole, shards, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"window \(=64\) differs from the checkpoint's \(=32\)"):
        train(run_of(shards, out, order__window=64))


def test_a_resume_with_other_permutations_in_the_file_is_refused(shards, tmp_path):
    file, out = tmp_path / "set.npy", tmp_path / "out"
    out.mkdir()
    np.save(file, make_permutations("max_min", 9, 10, seed=0))
    run = run_of(shards, out, pretext__permutation_file=str(file))
    train(run)
    np.save(file, make_permutations("max_min", 9, 10, seed=1))
    with pytest.raises(ConfigError, match=r"^the permutation set has changed since .* step 12,"):
        train(run)


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses_and_the_same_names(shards, tmp_path):
    # At a low rate: a high one amplifies the last digits, which differ.
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
        changes = {"optim__lr": 1e-3, "train__compile": name == "compiled"}
        train(run_of(shards, tmp_path / name, **changes))
    plain, compiled = (read_metrics(tmp_path / name) for name in ("plain", "compiled"))
    assert [r.loss for r in compiled] == pytest.approx([r.loss for r in plain], rel=2e-3)
    (model, optimizer), (ours, our_optimizer) = map(
        checkpoint, (tmp_path / "plain", tmp_path / "compiled")
    )
    assert ours.keys() == model.keys()
    assert our_optimizer["state"].keys() == optimizer["state"].keys()
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ("vit_s16", r"jigsaw tile_px \(=10\) must be a multiple of 16, .* trunk.name \(=vit_s16\)"),
        ("alexnet", r"jigsaw tile_px \(=10\) must be at least 25: .* trunk.name \(=alexnet\)"),
    ],
)
def test_tiles_that_the_trunk_can_not_see_are_refused(shards, tmp_path, trunk, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_of(shards, tmp_path, trunk__name=trunk)
    assert "\n" not in str(caught.value)


def test_compiling_without_a_compiler_is_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"train.compile \(=true\) needs a C\+\+ compiler"):
        check(run_of(shards, tmp_path, train__compile=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order__global_batch": 200}, r"the data set holds 198 samples, fewer than one"),
        ({"train__workers": 5}, r"world_size \(=5\) exceeds num_lanes \(=4\)"),
        ({"pretext__permutation_file": "nowhere"}, r"permutation_file \(=nowhere\) cannot be read"),
        ({"data__manifest": "nowhere"}, r"manifest \(=nowhere\) cannot be read"),
    ],
)
def test_what_would_stop_a_run_is_found_before_it_starts(shards, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(run_of(shards, tmp_path, **changes))
    assert not list(tmp_path.iterdir())
    check(run_of(shards, tmp_path))


def test_a_run_without_a_section_that_pretraining_needs_is_refused(shards, tmp_path):
    raw = {"out": tmp_path, "seed": 0, "data": {"manifest": shards}, "trunk": {"name": "small"}}
    with pytest.raises(ConfigError, match=r"^order is missing: pretraining needs this section"):
        pretraining_of(parse(RunConfig, raw, "config"))


def test_the_path_of_a_mistake_holds_no_tag_of_a_union(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"^config: optim\.lr \(=-1\): Input should be greater"):
        run_of(shards, tmp_path, optim__lr=-1)
