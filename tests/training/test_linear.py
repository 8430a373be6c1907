from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from labelled_stripes import (
    CLASSES,
    PX,
    ignore_progress,
    multi_label,
    random_trunk,
    setting_of,
    striped_task,
)

from pipeline.config import ConfigError
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.frozen.linear import (
    LinearConfig,
    kept_features,
    linear_head,
    pool_stages,
    pooled_stages,
    run_linear,
)
from training.transfer.images.augmented import evaluation_batches, train_batches

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def task(make_shards, tmp_path_factory):
    return striped_task(make_shards, tmp_path_factory.mktemp("stripes"))


def job_of(**changes):
    return LinearConfig(**{"name": "linear", "epochs": 3, "batch": 16, "dimension": 300, **changes})


def run(task, folder, seeds=(0,), **changes):
    found = run_linear(
        job_of(**changes), setting_of(task, folder, seeds), random_trunk(), ignore_progress
    )
    return {score.layer: score for score in found}


@pytest.fixture(scope="module")
def scores(task, tmp_path_factory):
    return run(task, tmp_path_factory.mktemp("linear"), seeds=(0, 1))


def test_every_layer_is_probed_and_stripes_are_told_apart(scores, task):
    assert list(scores) == [f"{stage}.map" for stage in STAGES]
    for score in scores.values():
        assert (score.job, score.trunk, len(score.scores)) == ("linear", "random", 2)
        assert (score.train_images, score.test_images) == (72, 24)
        assert score.metric == (
            "top-1 accuracy, percent; linear classifier on frozen features, trained on crops drawn "
            "anew in each epoch, tested on central view"
        )
        assert set(score.details["by_seed"][0]["accuracy_of"]) == set(CLASSES)
    assert max(score.score for score in scores.values()) > 80  # Chance is 33.


def test_a_layer_probed_alone_gets_the_same_score(scores, task, tmp_path):
    alone = run(task, tmp_path, seeds=(0, 1), layers=("layer2",))
    assert list(alone) == ["layer2.map"]
    ours, theirs = alone["layer2.map"], scores["layer2.map"]
    assert ours.scores == theirs.scores
    assert ours.details["last_loss"] == pytest.approx(theirs.details["last_loss"], rel=1e-4)


def test_a_seed_decides_the_score(task, tmp_path):
    one, again, other = (run(task, tmp_path, seeds=(seed,), epochs=1) for seed in (5, 5, 6))
    losses = [[s.details["last_loss"] for s in found.values()] for found in (one, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert [s.scores for s in one.values()] == [s.scores for s in again.values()]


def test_the_trunk_is_bit_identical_after_probing(task, tmp_path):
    made = random_trunk().build(0)
    before = {key: value.clone() for key, value in made.export().items()}
    given = replace(random_trunk(), build=lambda seed: made)
    run_linear(job_of(epochs=1), setting_of(task, tmp_path), given, ignore_progress)
    assert all(torch.equal(value, before[key]) for key, value in made.export().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_stored_features_equal_those_computed_in_every_epoch(task, tmp_path):
    setting, trunk = setting_of(task, tmp_path), random_trunk().build(0).eval()
    stages = pooled_stages(trunk, ("conv1", "layer3"), view_px=PX, dimension=300)
    anew = train_batches(task.train, None, setting, batch=16, seed=4)
    with kept_features(tmp_path, 72, stages) as kept:
        row = 0
        for shown in evaluation_batches(task.train, "central", job_of().crops, setting, seed=4):
            row = kept.put(row, pool_stages(trunk, shown.images, stages))
        assert row == 72
        again = kept.batches(task.train, batch=16, seed=4, device=setting.device)
        for shown, (features, targets) in islice(zip(anew, again, strict=False), 10):
            assert torch.equal(targets, shown.targets)
            for name, rows in pool_stages(trunk, shown.images, stages).items():
                assert torch.allclose(features[name], rows, atol=1e-4)
    assert not list(tmp_path.iterdir())


def test_without_augmentation_stripes_are_learned_from_the_central_views(task, tmp_path):
    scores = run(task, tmp_path, augment=False, pooling="gap", epochs=40)
    assert list(scores) == [f"{stage}.gap" for stage in STAGES]
    assert max(score.score for score in scores.values()) > 70
    assert "trained on central views" in scores["conv1.gap"].metric
    assert not list((tmp_path / "linear").iterdir())


def test_the_grids_of_resnet50_are_those_of_the_benchmark():
    trunk = build_trunk(TrunkConfig(name="resnet50"))
    found = pooled_stages(trunk, None, view_px=224, dimension=9000)
    assert [pooled.side for pooled in found.values()] == [12, 6, 4, 3, 2]
    assert [pooled.dimension for pooled in found.values()] == [9216, 9216, 8192, 9216, 8192]


def test_a_grid_is_no_finer_than_the_map():
    trunk = random_trunk().build(0)
    found = pooled_stages(trunk, None, view_px=PX, dimension=9000)
    assert [pooled.side for pooled in found.values()] == [16, 16, 8, 4, 2]


def test_an_unknown_layer_is_refused(task, tmp_path):
    with pytest.raises(ConfigError, match=r"^layers \(=layer9\) must be stages .*: conv1, layer1"):
        run(task, tmp_path, layers=("layer9",))


def test_multi_label_probes_are_scored_by_mean_average_precision(task, tmp_path):
    scores = run(multi_label(task, difficult=range(12)), tmp_path, test_views="ten_crops")
    best = max(scores.values(), key=lambda score: score.score)
    assert best.score > 70
    assert best.metric.startswith("mean average precision, percent: area under")
    assert "difficult ones ignored" in best.metric
    assert "mean over 10 crops" in best.metric
    assert set(best.details["by_seed"][0]["average_precision_of"]) == set(CLASSES)


def test_too_high_a_learning_rate_is_reported(task, tmp_path):
    with pytest.raises(ConfigError, match=r"are not finite"):
        run(multi_label(task), tmp_path, lr=1e38, epochs=2)


def test_a_head_depends_on_seed_and_name():
    weights = [linear_head(*args)[1].weight for args in (("a", 5, 2, 0), ("a", 5, 2, 0))]
    others = [linear_head(*args)[1].weight for args in (("b", 5, 2, 0), ("a", 5, 2, 1))]
    assert torch.equal(*weights)
    assert not any(torch.equal(weights[0], other) for other in others)
    assert np.isclose(linear_head("a", 9000, 20, 0)[1].weight.std().item(), 0.01, rtol=0.02)
