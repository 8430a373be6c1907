import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from voc_layout import VocFolder, gray

from pipeline.config import ConfigError, parse
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.dense.box_model import build_box_model, train_mode, trunk_parts
from training.transfer.dense.box_options import BoxModelOptions
from training.transfer.dense.detection import DetectionConfig, fitted_boxes, run_detection
from training.transfer.images.voc import VocImage
from training.transfer.job import NamedTrunk, Setting

COLORS = {"blue": (30, 60, 220), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A VOC folder: 24 images of 64 x 64 px and 12 for the test, a red or blue square in each."""
    voc = VocFolder(tmp_path_factory.mktemp("voc") / "VOC2007")
    rng = np.random.default_rng(0)
    ids = [f"{number:03}" for number in range(36)]
    for number, image_id in enumerate(ids):
        side, name = int(rng.integers(20, 36)), list(COLORS)[number % 2]
        left, top = (int(v) for v in rng.integers(0, 64 - side, 2))
        pixels = gray(64, 64)
        pixels[top : top + side, left : left + side] = COLORS[name]
        box = (left + 1, top + 1, left + side, top + side)
        voc.add(image_id, pixels, (name, box, 0))
    voc.list("trainval", ids[:24])
    voc.list("test", ids[24:])
    return voc.root


def job_on(folder, **changes):
    raw = {
        "name": "detection",
        "voc": str(folder),
        "image_px": 64,
        "long_px": 64,
        "batch": 4,
        "lr": 0.02,
        "max_steps": 4,
        "max_minutes": None,
        "roi_px": 4,
        "fpn_width": 16,
        "rois_per_image": 16,
        "proposals": 20,
    }
    return parse(DetectionConfig, {**raw, **changes}, "test")


def trunk_of(name="small"):
    def build(seed):
        torch.manual_seed(seed)
        return build_trunk(TrunkConfig(name=name), use="transfer", view_px=64)

    return NamedTrunk("random", "random:0", build, draws_weights=True)


def setting_with(seeds=(0,)):
    """A setting for detection, which does not use the images of its task."""
    return Setting(
        task=None,
        device=torch.device("cpu"),
        view_px=64,
        seeds=seeds,
        batch=8,
        threads=1,
        precision="fp32",
        folder=Path(),
    )


def run(job, trunk=None, seeds=(0,)):
    said = []
    scores = run_detection(job, setting_with(seeds), trunk or trunk_of(), lambda *s: said.append(s))
    return scores, said


def options_with(**changes):
    options = {
        "neck": "c4",
        "num_classes": 2,
        "image_px": 64,
        "roi_px": 4,
        "fpn_width": 16,
        "proposals": 10,
        "rois_per_image": 16,
        "score_threshold": 0.05,
        "batch_norm": "train",
        "frozen_stages": 0,
    }
    return BoxModelOptions(**{**options, **changes})


def test_squares_are_learned(squares):
    ((score,), said) = run(job_on(squares, max_steps=90))
    assert score.score > 50  # Random boxes overlap by half a few times in a hundred.
    details = score.details
    assert details["last_loss"][0] < details["first_loss"][0] / 2
    assert details["coco_ap"][0] <= details["coco_ap50"][0]
    assert set(details["classes"]) == {"blue", "red"}
    assert (score.train_images, score.test_images, details["undefined"]) == (24, 12, [])
    assert score.scores == tuple(details["ap_11_point"])
    assert "recalls of 0, 0.1, ... 1" in score.metric
    assert said[-1] == ("random: detection, seed 1 of 1, test", 12, 12)
    assert json.loads(json.dumps(details, allow_nan=False)) == details


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_the_same_seed_gives_the_same_training(squares, neck):
    torch.manual_seed(5)
    (first,), _ = run(job_on(squares, neck=neck, num_seeds=2), seeds=(3, 4, 5))
    between = torch.rand(1)
    (again,), _ = run(job_on(squares, neck=neck, num_seeds=2), seeds=(3, 4, 5))
    losses = first.details["last_loss"]
    assert losses == again.details["last_loss"]
    assert first.scores == again.scores
    assert losses[0] != losses[1]
    assert len(first.scores) == 2
    torch.manual_seed(5)
    trunk_of().build(4)  # All that a run draws from the global generator.
    assert torch.rand(1) == between


def test_max_minutes_stops_training(squares):
    (score,), _ = run(job_on(squares, max_steps=10_000, max_minutes=0.02))
    assert score.details["ended_by"] == ["minutes"]
    assert 0 < score.details["steps"][0] < 10_000


def test_a_class_absent_from_the_test_is_undefined_and_named(squares, tmp_path):
    only_blue = (squares / "ImageSets/Main/test.txt").read_text().split()[::2]
    (squares / "ImageSets/Main/val.txt").write_text("\n".join(only_blue))
    (score,), _ = run(job_on(squares, test_set="val"))
    assert score.details["undefined"] == ["red"]
    assert score.details["classes"]["red"]["ap_area"] is None
    assert not np.isnan(score.score)
    assert any("red" in note for note in score.details["notes"]["test"])


def test_unusable_sets_and_trunks_are_refused_in_one_line(squares, tmp_path):
    empty = VocFolder(tmp_path / "VOC2007")
    empty.add("a", gray(), ("cat", (1, 1, 9, 9), 1))
    empty.list("trainval", "a")
    empty.list("test", "a")
    with pytest.raises(ConfigError, match=r"train_set \(=trainval\) .* no box that is not"):
        run(job_on(empty.root))
    with pytest.raises(ConfigError, match="needs a residual trunk, and AlexNetTrunk"):
        run(job_on(squares), trunk_of("alexnet"))
    with pytest.raises(ConfigError, match="voc is missing"):
        parse(DetectionConfig, {"name": "detection"}, "test")
    with pytest.raises(ConfigError, match=r"lr \(=1e\+30\) of detection: the loss of step"):
        run(job_on(squares, lr=1e30, max_norm=1e30, warmup=0))


@pytest.mark.parametrize("neck", ["c4", "fpn"])
@pytest.mark.parametrize(
    ("batch_norm", "frozen_stages"), [("train", 0), ("train", 3), ("frozen", 0), ("sync", 1)]
)
def test_frozen_parts_do_not_change(neck, batch_norm, frozen_stages):
    options = options_with(neck=neck, batch_norm=batch_norm, frozen_stages=frozen_stages)
    trunk = trunk_of().build(0)
    model = build_box_model(trunk, options)
    train_mode(model, trunk, options)
    before = {key: value.clone() for key, value in trunk.export().items()}
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}] * 2
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model([torch.randn(3, 64, 64)] * 2, targets).values()).backward()
    optimizer.step()
    for key, value in trunk.export().items():
        is_norm = "bn" in key or "downsample.1" in key
        fixed = trunk.stage_of(key) < frozen_stages or (is_norm and batch_norm == "frozen")
        assert torch.equal(before[key], value) == fixed, key


def test_test_images_keep_their_size():
    model = build_box_model(trunk_of().build(0), options_with()).eval()
    sizes = []
    model.backbone.register_forward_hook(lambda _, images, __: sizes.append(images[0].shape))
    with torch.inference_mode():
        model([torch.randn(3, 64, 96), torch.randn(3, 90, 40)])
    assert sizes == [(2, 3, 96, 96)]  # The largest sides, a multiple of 32.


def test_every_weight_of_the_trunk_has_a_stage():
    trunk = trunk_of("resnet18").build(0)
    parts = list(trunk_parts(trunk))
    held = sum(p.numel() for part, _ in parts for p in part.parameters(recurse=False))
    assert held == sum(p.numel() for p in trunk.parameters())
    assert {stage for _, stage in parts} == set(range(5))


BOX = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 50)] * 2)


@given(st.lists(BOX, max_size=4), st.integers(8, 200), st.integers(8, 200))
def test_boxes_follow_the_pixels(drawn, height, width):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in drawn], np.float32).reshape(-1, 4)
    labels, flags = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
    image = VocImage("a", Path("a.jpg"), 100, 100, boxes, labels, flags)
    plain = fitted_boxes(image, (height, width), mirrored=False)
    scale = np.array([width, height, width, height]) / 100
    np.testing.assert_allclose(plain, boxes * scale, rtol=1e-5)
    turned = fitted_boxes(image, (height, width), mirrored=True)
    np.testing.assert_allclose(turned[:, 1::2], plain[:, 1::2])
    np.testing.assert_allclose(turned[:, 0] + plain[:, 2], width, rtol=1e-4)
    np.testing.assert_allclose(turned[:, 2] + plain[:, 0], width, rtol=1e-4)
