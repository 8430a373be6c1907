import copy
from dataclasses import replace

import pytest
import torch
from labelled_stripes import PX, ignore_progress, random_trunk, setting_of, striped_task

from pipeline.config import ConfigError
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.tuned.lock import LockConfig, run_lock
from training.transfer.tuned.train import FitConfig, fit, make_classifier, renew_stages

NAMES = ("small", "resnet18", "resnet50", "alexnet", "vit_s16")
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def task(make_shards, tmp_path_factory):
    return striped_task(make_shards, tmp_path_factory.mktemp("stripes"))


def trunk_of(name, seed=0, px=64):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name=name), use="transfer", view_px=px)


def job_of(**changes):
    training = FitConfig(epochs=4, batch=16)
    return LockConfig(**{"name": "lock", "training": training, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_of_a_stage_affect_its_map_and_no_earlier_one(name):
    trunk = trunk_of(name).eval()
    image = torch.randn(1, 3, 64, 64)
    keys = [key for key, _ in trunk.net.named_parameters()]
    stages = {trunk.stage_of(key) for key in trunk.export()}
    assert stages == set(range(len(trunk.stage_names)))
    with torch.inference_mode():
        plain = [each.clone() for each in trunk.stages(image)]
        for stage in stages:
            moved = copy.deepcopy(trunk)
            for key in keys:
                if trunk.stage_of(key) == stage:
                    moved.net.get_parameter(key).mul_(1.5).add_(0.01)
            same = [torch.equal(*pair) for pair in zip(plain, moved.stages(image), strict=True)]
            assert same == [number < stage for number in range(len(plain))], stage


@pytest.mark.parametrize("name", NAMES)
def test_every_module_with_weights_belongs_to_one_stage(name):
    trunk = trunk_of(name)
    for module_name, module in trunk.net.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(
            module.named_buffers(recurse=False)
        )
        prefix = f"{module_name}." if module_name else ""
        for key in own:
            assert trunk.stage_of(f"{prefix}{key}") == trunk.stage_of(module_name), key


@pytest.mark.parametrize("name", NAMES)
def test_a_remade_trunk_has_the_same_shapes_and_other_weights(name):
    trunk = trunk_of(name)
    fresh = trunk.remake()
    assert type(fresh) is type(trunk)
    ours, theirs = trunk.export(), fresh.export()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert not torch.equal(trunk.first_filters, fresh.first_filters)
    assert fresh.remake().export().keys() == ours.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_kept", [1, 3])
def test_stages_are_kept_or_redrawn_from_the_seed(name, num_kept):
    trunk = trunk_of(name)
    before = {key: value.clone() for key, value in trunk.export().items()}
    renewed, again = (renew_stages(trunk, num_kept=num_kept, seed=7) for _ in range(2))
    other = renew_stages(trunk, num_kept=num_kept, seed=8)
    drawn = [key for key, p in trunk.net.named_parameters() if p.ndim > 1]
    for key, value in renewed.export().items():
        assert torch.equal(value, again.export()[key])
        kept = trunk.stage_of(key) < num_kept
        if kept or key in drawn:
            assert torch.equal(value, before[key]) == kept, key
            assert torch.equal(value, other.export()[key]) == kept, key
    assert all(torch.equal(value, before[key]) for key, value in trunk.export().items())


def test_positions_of_other_views_are_kept():
    trunk = trunk_of("vit_s16", px=96)
    trunk.remake = lambda: trunk_of("vit_s16", seed=5, px=64)
    renewed = renew_stages(trunk, num_kept=1, seed=0)
    key = "encoder.pos_embedding"
    assert torch.equal(renewed.export()[key], trunk.export()[key])


@pytest.mark.parametrize(("name", "px"), [("small", PX), ("alexnet", 48), ("vit_s16", PX)])
def test_locked_stages_are_bit_identical_and_the_others_change(task, tmp_path, name, px):
    setting = replace(setting_of(task, tmp_path), view_px=px)
    config = FitConfig(epochs=1, batch=36)
    trunk = trunk_of(name, px=px)
    before = {key: value.clone() for key, value in trunk.export().items()}
    model = make_classifier(trunk, config, setting, num_locked=2, seed=0)
    assert len(list(fit(model, task.train, config, setting, seed=0))) == 2
    for key, value in trunk.export().items():
        assert torch.equal(value, before[key]) == (trunk.stage_of(key) < 2), key
    for key, parameter in trunk.net.named_parameters():
        assert (parameter.grad is None) == (trunk.stage_of(key) < 2), key
        assert parameter.requires_grad == (trunk.stage_of(key) >= 2), key


def test_every_stage_gets_a_score_and_stripes_are_learned(task, tmp_path):
    setting = setting_of(task, tmp_path, seeds=(0, 1))
    seen = []
    scores = run_lock(
        job_of(layers=("conv1", "layer4")), setting, random_trunk(), lambda *now: seen.append(now)
    )
    assert [score.layer for score in scores] == ["conv1", "layer4"]
    assert all(len(score.scores) == 2 for score in scores)
    assert scores[0].score > 55  # Chance is 33.
    assert scores[0].metric == (
        "top-1 accuracy, percent; stages up to this one locked, the others trained from fresh "
        "weights, tested on central view"
    )
    ends = {what: (done, total) for what, done, total in seen}
    assert ends["random: locked up to layer4, seed 2 of 2"] == (1000, 1000)
    assert len(ends) == 4


def test_a_seed_decides_the_score_and_ten_crops_are_averaged(task, tmp_path):
    job = job_of(
        layers=("layer3",), training=FitConfig(epochs=1, batch=16), test_views="ten_random"
    )
    found = [
        run_lock(job, setting_of(task, tmp_path, (s,)), random_trunk(), ignore_progress)
        for s in (1, 1)
    ]
    (one,), (again,) = found
    assert (one.scores, one.details) == (again.scores, again.details)
    assert one.metric.endswith("tested on mean over 10 random crops")


def test_an_unknown_layer_is_refused(task, tmp_path):
    with pytest.raises(ConfigError, match=r"^layers \(=block3\) must be stages .*: conv1, layer1"):
        run_lock(
            job_of(layers=("block3",)), setting_of(task, tmp_path), random_trunk(), ignore_progress
        )
