from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled_stripes import (
    CLASSES,
    ignore_progress,
    multi_label,
    random_trunk,
    setting_of,
    striped_task,
)
from torch import nn

from pipeline.config import ConfigError, parse
from training.optimizer import AdamWConfig, SgdConfig, build_optimizer, set_rate
from training.transfer.classification import evaluate_scores, loss_of, merge_views
from training.transfer.tuned.finetune import FinetuneConfig, run_finetune
from training.transfer.tuned.train import (
    FitConfig,
    fit,
    fresh_head,
    lr_factor_of,
    make_classifier,
    rate_at,
)

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def task(make_shards, tmp_path_factory):
    return striped_task(make_shards, tmp_path_factory.mktemp("stripes"))


def job_of(training=None, **changes):
    fit_on = FitConfig(**{"epochs": 6, "batch": 16, **(training or {})})
    return FinetuneConfig(**{"name": "finetune", "training": fit_on, **changes})


def run(task, folder, seeds=(0,), trunk=None, **changes):
    setting = setting_of(task, folder, seeds)
    (score,) = run_finetune(job_of(**changes), setting, trunk or random_trunk(), ignore_progress)
    return score


def test_stripes_are_learned_and_early_and_final_scores_are_recorded(task, tmp_path):
    score = run(task, tmp_path, seeds=(0, 1))
    assert (score.job, score.trunk, score.layer) == ("finetune", "random", "")
    assert score.metric == "top-1 accuracy, percent; all weights trained, tested on central view"
    assert min(score.scores) > 60  # Chance is 33.
    assert (score.train_images, score.test_images) == (72, 24)
    assert score.details["steps"] == [30, 30]
    assert score.details["early_share"] == 0.2
    assert len(score.details["early_scores"]) == 2
    assert np.mean(score.details["early_scores"]) < score.score
    for details in score.details["by_seed"]:
        assert set(details["accuracy_of"]) == set(CLASSES)


def test_a_seed_decides_the_score(task, tmp_path):
    one, again, other = (
        run(task, tmp_path, seeds=(seed,), training={"epochs": 1}) for seed in (3, 3, 4)
    )
    assert (one.scores, one.details) == (again.scores, again.details)
    assert one.details["last_loss"] != other.details["last_loss"]


def tuned(task, tmp_path, **changes):
    """Fine-tune one trunk, and return its weights before and after, and the trunk."""
    made = random_trunk().build(0)
    before = {key: value.clone() for key, value in made.export().items()}
    given = replace(random_trunk(), build=lambda seed: made)
    run(task, tmp_path, trunk=given, **changes)
    return before, made.export(), made


@pytest.mark.parametrize("first", ["layer3", "head"])
def test_stages_before_the_first_trained_are_bit_identical(task, tmp_path, first):
    before, after, trunk = tuned(task, tmp_path, from_layer=first, training={"epochs": 1})
    place = (*STAGES, "head").index(first)
    for key, value in before.items():
        assert torch.equal(value, after[key]) == (trunk.stage_of(key) < place), key
    for key, parameter in trunk.net.named_parameters():
        assert (parameter.grad is None) == (trunk.stage_of(key) < place), key


def test_all_weights_are_trained_where_no_stage_is_named(task, tmp_path):
    before, after, _ = tuned(task, tmp_path, training={"epochs": 1})
    assert not [key for key, value in before.items() if torch.equal(value, after[key])]


def test_a_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale(task, tmp_path):
    training = {"epochs": 1, "batch_norm": "frozen", "optim": SgdConfig(name="sgd", lr=1e-3)}
    before, after, _ = tuned(task, tmp_path, training=training)
    kept = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert kept == {key for key in before if "running_" in key or "num_batches" in key}
    assert any(key.endswith("bn1.weight") for key in before.keys() - kept)


def test_the_metric_names_what_is_trained(task, tmp_path):
    training = {"epochs": 1}
    for first, words in (("layer4", "weights from layer4 on"), ("head", "the classifier alone")):
        score = run(task, tmp_path, from_layer=first, training=training)
        assert f"; {words} trained, " in score.metric
        assert score.layer == first


def test_an_unknown_stage_is_refused(task, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^from_layer \(=conv9\) must be a stage .* layer4, head"
    ):
        run(task, tmp_path, from_layer="conv9")


def test_multi_label_images_are_learned_and_tested_on_ten_crops(task, tmp_path):
    score = run(multi_label(task, difficult=range(0, 20, 2)), tmp_path, training={"epochs": 4})
    assert score.score > 60
    assert score.metric.startswith("mean average precision, percent: area under")
    assert score.metric.endswith("all weights trained, tested on mean over 10 random crops")


def test_difficult_targets_have_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    targets = torch.tensor([[1, 0, -1, 0], [0, -1, 1, 1], [0, 0, 0, -1]])
    loss_of(logits, targets).backward()
    assert torch.equal(logits.grad == 0, targets == -1)
    plain = nn.functional.binary_cross_entropy_with_logits
    shown = targets >= 0
    wanted = plain(logits[shown], targets[shown].float(), reduction="sum") / 3
    assert torch.allclose(loss_of(logits, targets), wanted)


def test_difficult_targets_are_not_evaluated(task):
    several = multi_label(task, difficult=range(24))
    scores = np.eye(3, dtype=np.float32)[task.test.targets]
    rows = np.arange(24)
    for value in (-5, 5):
        scores[rows, task.test.targets - 1] = value  # Where every image is difficult.
        assert evaluate_scores(scores, several, "area").score == 100


def test_views_are_averaged_as_probabilities_or_as_logits():
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 1.0]])
    wanted = logits.softmax(dim=1).view(2, 2, 2).mean(dim=1)
    assert torch.allclose(merge_views(logits, 2, multi_label=False), wanted)
    several = merge_views(logits, 2, multi_label=True)
    assert several.tolist() == [[2, 1], [2, 1]]


def test_learning_rates_rise_by_stage_and_the_head_has_its_own(task, tmp_path):
    config = FitConfig(head_lr_factor=10, stage_lr_decay=0.5)
    trunk, setting = random_trunk().build(0), setting_of(task, tmp_path)
    model = make_classifier(trunk, config, setting, num_locked=1, seed=0)
    optimizer = build_optimizer(model, config.optim, lambda n: lr_factor_of(model, config, n))
    set_rate(optimizer, 0.4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert not [name for name in rates if ".conv1.weight" in name and "layer" not in name]
    for stage, factor in zip(STAGES[1:], (0.125, 0.25, 0.5, 1), strict=True):
        ours = {rate for name, rate in rates.items() if f".{stage}." in name}
        assert sorted(ours) == pytest.approx([0.4 * factor]), stage
    assert {rate for name, rate in rates.items() if name.startswith("head.")} == {4.0}


def test_the_rate_drops_in_steps_after_the_warm_up():
    optim = AdamWConfig(name="adamw", lr=1.0, warmup=0.1)
    config = FitConfig(optim=optim, schedule="steps", lr_steps=(0.5, 0.75), lr_factor=0.1)
    shares = (0.05, 0.1, 0.49, 0.5, 0.74, 0.75, 1)
    rates = [rate_at(config, share) for share in shares]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = FitConfig(optim=optim)
    assert [rate_at(cosine, s) for s in (0.05, 0.55, 1)] == pytest.approx([0.5, 0.5, 0])


def test_max_minutes_stops_training(task, tmp_path):
    config = FitConfig(epochs=10_000, batch=16, max_minutes=1e-3)
    setting = setting_of(task, tmp_path)
    model = make_classifier(random_trunk().build(0), config, setting, num_locked=0, seed=0)
    steps = list(fit(model, task.train, config, setting, seed=0))
    assert 1 <= len(steps) < 1000
    assert steps[-1].share == 1
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))


def test_too_high_a_learning_rate_is_reported(task, tmp_path):
    training = {"epochs": 2, "optim": SgdConfig(name="sgd", lr=1e30)}
    with pytest.raises(ConfigError, match=r"are not finite"):
        run(task, tmp_path, training=training)


def test_hidden_layers_are_between_trunk_and_output():
    head = fresh_head(256, (64, 32), 5, dropout=0.5)
    sizes = [(layer.in_features, layer.out_features) for layer in head if hasattr(layer, "bias")]
    assert sizes == [(256, 64), (64, 32), (32, 5)]
    assert sum(isinstance(layer, nn.Dropout) for layer in head) == 2
    assert len(fresh_head(256, (), 5, dropout=0.5)) == 1


def test_a_job_needs_only_its_name():
    assert parse(FinetuneConfig, {"name": "finetune"}, "config") == FinetuneConfig(name="finetune")
