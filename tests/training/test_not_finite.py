"""No score comes of weights, features or predictions that are not finite."""

import json
import math

import numpy as np
import pytest
import torch
from labelled_stripes import ignore_progress, random_trunk, setting_of, striped_task

from pipeline.config import ConfigError, parse
from training.metrics import FILE_NAME
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig
from training.transfer.evaluate import transfer
from training.transfer.frozen.knn import nearest
from training.transfer.frozen.svm import LayerFeatures, score_test
from training.transfer.job import NotFiniteError, require_finite, require_finite_model
from training.transfer.tuned.finetune import FinetuneConfig, run_finetune

FROZEN = ("svm", "low_shot", "knn", "retrieval")
JOBS = (
    {"name": "svm", "costs": [0.01]},
    {"name": "low_shot", "shots": [1], "draws": 1},
    {"name": "knn", "neighbours": [1]},
    {"name": "retrieval", "neighbours": 1, "queries": 2},
    {"name": "linear", "epochs": 1, "augment": False},
    {"name": "finetune", "training": {"epochs": 1}},
    {"name": "lock", "training": {"epochs": 1}},
)


def trunk_of(seed=0):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name="small"), use="transfer", view_px=32)


def run_of(out, shards, jobs=JOBS, **section):
    raw = {
        "out": str(out),
        "seed": 0,
        "data": {"manifest": str(shards)},
        "trunk": {"name": "small"},
    }
    raw["transfer"] = {"view_px": 32, "test_per_class": 12, "jobs": jobs, **section}
    return parse(RunConfig, raw, "test")


def test_weights_that_overflow_give_no_score_in_any_job(tmp_path, shards):
    # Finite, so that only what they make of an image tells: layer3 and after are infinite or NaN.
    weights = trunk_of().export()
    weights["layer3.0.bn2.weight"] = torch.full_like(weights["layer3.0.bn2.weight"], 3e38)
    torch.save(weights, tmp_path / "huge.pth")
    trunks = ({"name": "theirs", "weights": str(tmp_path / "huge.pth")},)
    found = transfer(
        run_of(tmp_path / "run", shards, trunks=trunks), torch.device("cpu"), ignore_progress
    )
    assert found.entries == []
    assert list(found.failures) == [
        "features of theirs",
        *(f"{job['name']} on theirs" for job in JOBS if job["name"] not in FROZEN),
    ]
    for name, error in found.failures.items():
        assert isinstance(error, ConfigError), name
        assert str(error).startswith(f"trunk (=theirs) of weights (={tmp_path / 'huge.pth'}): ")
        assert "not finite" in str(error), name
        assert "\n" not in str(error)
    assert "the features of layer layer3" in str(found.failures["features of theirs"])
    assert not (tmp_path / "run" / "transfer" / "svm.json").exists()


def test_weights_that_are_not_finite_stop_a_transfer_before_it_begins(tmp_path, shards):
    weights = {
        k: torch.full_like(v, math.nan) for k, v in trunk_of().export().items() if "num" not in k
    }
    torch.save(weights, tmp_path / "nan.pth")
    trunks = ("random", {"name": "theirs", "weights": str(tmp_path / "nan.pth")})
    with pytest.raises(ConfigError, match=r"nan\.pth\) are not finite: .*conv1\.weight|bn1"):
        transfer(
            run_of(tmp_path / "run", shards, trunks=trunks), torch.device("cpu"), ignore_progress
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_enough(bad):
    for values in (np.zeros((3, 4), np.float32), torch.zeros(3, 4)):
        require_finite("features", values)
        values[1, 2] = bad
        with pytest.raises(NotFiniteError, match=r"^features are not finite \(1 of 12 values\)$"):
            require_finite("features", values)
    model = trunk_of()
    require_finite_model(model)
    model.net.layer1[0].bn1.running_mean[2] = bad
    with pytest.raises(NotFiniteError, match=r"net\.layer1\.0\.bn1\.running_mean are not finite"):
        require_finite_model(model)


def test_features_whose_length_overflows_have_no_neighbours():
    rows = np.full((3, 4), 1e25, np.float32)  # Finite, but their squares are not.
    with pytest.raises(NotFiniteError, match="the lengths of the features"):
        nearest(rows, rows, 1, torch.device("cpu"))


def test_predictions_of_an_svm_are_checked():
    rows, targets = torch.full((2, 2), 1e38), np.array([0, 1])
    with pytest.raises(NotFiniteError, match="the SVM's scores"):
        score_test(LayerFeatures(rows, rows, targets, targets), torch.full((2, 2), 1e38), targets)


def test_a_training_that_diverges_gives_no_score(tmp_path, make_shards):
    task = striped_task(make_shards, tmp_path, per_class=8, test_per_class=4)
    training = {"epochs": 2, "batch": 8, "optim": {"name": "sgd", "lr": 1e30}}
    job = parse(FinetuneConfig, {"name": "finetune", "training": training}, "test")
    with pytest.raises(NotFiniteError):
        run_finetune(job, setting_of(task, tmp_path / "transfer"), random_trunk(), ignore_progress)


def diverged_run(folder, losses):
    folder.mkdir()
    export_trunk(trunk_of(), folder / "trunk.safetensors")
    record = {"epoch": 0, "progress": 0.5, "seconds": 1.0, "accuracy": 0.1, "lr": 0.1}
    record |= {"images_per_s": 10.0, "starvation": 0.0}
    lines = (json.dumps({**record, "step": 5 * n, "loss": x}) for n, x in enumerate(losses, 1))
    (folder / FILE_NAME).write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_the_trunk_of_a_run_that_diverged_is_refused(tmp_path, shards):
    out = diverged_run(tmp_path / "run", [2.0, 1.5, math.nan, math.inf])
    with pytest.raises(ConfigError) as caught:
        transfer(run_of(out, shards, trunks=("pretrained",)), torch.device("cpu"), ignore_progress)
    assert str(caught.value).startswith(
        f"run (={out}) diverged: its loss is not finite from step 15 on, so its trunk.safetensors "
    )


def test_a_loss_that_came_back_is_no_divergence(tmp_path, shards):
    out = diverged_run(tmp_path / "run", [2.0, math.inf, 1.5])
    jobs = ({"name": "knn", "neighbours": [1]},)
    found = transfer(
        run_of(out, shards, jobs, trunks=("pretrained",)), torch.device("cpu"), ignore_progress
    )
    assert not found.failures
    assert found.entries
