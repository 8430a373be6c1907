import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torchmetrics.functional.classification import multiclass_jaccard_index
from voc_layout import VocFolder, gray

from pipeline.config import ConfigError, parse
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.dense.masks import (
    VOID,
    count_pixels,
    fitted_mask,
    overlaps_of_classes,
    read_mask,
    read_masked,
)
from training.transfer.dense.segmentation import (
    SegmentationConfig,
    dilate_last_stage,
    run_segmentation,
)
from training.transfer.job import NamedTrunk, Setting

COLORS = {"blue": (30, 60, 220), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A VOC folder: 16 images and 8 for the test, a red or blue square with a void border."""
    voc = VocFolder(tmp_path_factory.mktemp("voc") / "VOC2012")
    rng = np.random.default_rng(0)
    ids = [f"{number:03}" for number in range(24)]
    for number, image_id in enumerate(ids):
        height, width, side = 48 + 8 * (number % 3), 64, int(rng.integers(20, 32))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        pixels, indexes = gray(height, width), np.zeros((height, width), np.uint8)
        inside = slice(top, top + side), slice(left, left + side)
        pixels[inside] = list(COLORS.values())[number % 2]
        indexes[inside] = VOID
        indexes[top + 1 : top + side - 1, left + 1 : left + side - 1] = 1 + number % 2
        voc.add(image_id, pixels)
        voc.add_mask(image_id, indexes)
    voc.list("train", ids[:16], task="Segmentation")
    voc.list("val", ids[16:], task="Segmentation")
    for number, name in enumerate(COLORS):
        voc.list_class(name, "train", {i: 1 if k % 2 == number else -1 for k, i in enumerate(ids)})
    return voc


def job_on(folder, **changes):
    raw = {
        "name": "segmentation",
        "voc": str(folder),
        "image_px": 48,
        "long_px": 64,
        "batch": 4,
        "lr": 0.03,
        "head_width": 16,
        "max_steps": 3,
        "max_minutes": None,
    }
    return parse(SegmentationConfig, {**raw, **changes}, "test")


def trunk_of(name="small"):
    def build(seed):
        torch.manual_seed(seed)
        return build_trunk(TrunkConfig(name=name), use="transfer", view_px=64)

    return NamedTrunk("random", "random:0", build, draws_weights=True)


def run(job, trunk=None, seeds=(0,)):
    setting = Setting(
        task=None,  # Not used.
        device=torch.device("cpu"),
        view_px=64,
        seeds=seeds,
        batch=8,
        threads=1,
        precision="fp32",
        folder=Path(),
    )
    said = []
    scores = run_segmentation(job, setting, trunk or trunk_of(), lambda *s: said.append(s))
    return scores, said


def test_squares_are_learned(squares):
    ((score,), said) = run(job_on(squares.root, max_steps=60))
    # All background gives at most (1 + 0 + 0) / 3.
    assert score.score > 60
    assert score.details["pixel_accuracy"][0] > 90
    assert score.details["last_loss"][0] < score.details["first_loss"][0] / 2
    assert list(score.details["classes"]) == ["background", "blue", "red"]
    assert (score.train_images, score.test_images) == (16, 8)
    assert said[-1] == ("random: segmentation, seed 1 of 1, test", 8, 8)
    assert json.loads(json.dumps(score.details, allow_nan=False)) == score.details


def test_the_same_seed_gives_the_same_training(squares):
    scores = [run(job_on(squares.root, num_seeds=2), seeds=(3, 4, 5))[0][0] for _ in range(2)]
    assert scores[0].scores == scores[1].scores
    assert scores[0].details["last_loss"] == scores[1].details["last_loss"]
    assert len(set(scores[0].details["last_loss"])) == 2


def test_a_frozen_trunk_is_not_trained(squares):
    built = []

    def build(seed):
        built.append(trunk_of().build(seed))
        return built[-1]

    trunk = NamedTrunk("mine", "digest", build, draws_weights=False)
    (score,), _ = run(job_on(squares.root, frozen=True, dilated=False), trunk)
    fresh = trunk_of().build(0).export()
    assert all(torch.equal(value, fresh[key]) for key, value in built[0].export().items())
    assert (score.layer, "head trained" in score.metric) == ("head", True)


@pytest.mark.parametrize("name", ["small", "resnet18", "resnet50"])
def test_a_dilated_stage_keeps_the_values_of_the_positions_it_had(name):
    trunk = trunk_of(name).build(0).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        before = trunk.stages(images)[-1]
        dilate_last_stage(trunk)
        after = trunk.stages(images)[-1]
    assert after.shape[2:] == (2 * before.shape[2], 2 * before.shape[3])
    torch.testing.assert_close(after[:, :, ::2, ::2], before, rtol=1e-3, atol=1e-3)


def test_a_trunk_without_dilation_is_refused(squares):
    with pytest.raises(ConfigError, match=r"dilated \(=True\) needs a residual trunk"):
        run(job_on(squares.root), trunk_of("alexnet"))


def test_folders_without_masks_are_refused_in_one_line(tmp_path):
    voc = VocFolder(tmp_path / "VOC2007")
    with pytest.raises(ConfigError, match="holds no SegmentationClass"):
        run(job_on(voc.root))
    with pytest.raises(ConfigError, match="voc is missing"):
        parse(SegmentationConfig, {"name": "segmentation"}, "test")
    (voc.root / "SegmentationClass").mkdir()
    voc.list("train", ["lost"], task="Segmentation")
    with pytest.raises(ConfigError, match=r"no image that can be used .* 1 missing_image"):
        run(job_on(voc.root))


def test_odd_images_are_counted(tmp_path):
    voc = VocFolder(tmp_path / "VOC2012")
    for image_id in "abcd":
        voc.add(image_id, gray())
    voc.add_mask("a", np.full((40, 60), 2))
    voc.add_mask("b", np.zeros((40, 61)))
    voc.add_mask("d", np.zeros((40, 60)))
    mask = voc.root / "SegmentationClass/d.png"
    mask.write_bytes(mask.read_bytes()[:30])
    voc.list("val", [*"aabcde"], task="Segmentation")
    # Numbers name the classes where there are no class files.
    assert read_masked(voc.root, "val").classes == ("background", "1", "2")
    voc.list_class("cat", "val", {"a": 1})
    found = read_masked(voc.root, "val")
    assert [image.id for image in found.images] == ["a"]
    assert found.classes == ("background", "cat")
    assert found.problems == {
        "listed_twice": 1,
        "size_differs": 1,
        "missing_mask": 1,
        "unreadable_mask": 1,
        "missing_image": 1,
    }
    with pytest.raises(ConfigError, match="names class 2 of 2 with the background"):
        read_mask(found.images[0], 2)
    Image.fromarray(gray()).save(found.images[0].mask)
    with pytest.raises(ConfigError, match="has pixels of mode RGB, not the index"):
        read_mask(found.images[0], 3)


def test_masks_follow_their_images():
    indexes = np.array([[0, 1], [2, VOID]], np.uint8)
    large = fitted_mask(indexes, (4, 6), mirrored=False)
    assert large.tolist() == np.kron(indexes, np.ones((2, 3), int)).tolist()
    assert fitted_mask(indexes, (4, 6), mirrored=True).tolist() == large[:, ::-1].tolist()


def test_overlaps_worked_out_by_hand():
    truth = np.array([[0, 0, 1, VOID], [0, 1, 1, VOID]], np.uint8)
    guess = np.array([[0, 1, 1, 0], [0, 1, 2, 2]])
    # Background: 2 of 3. Class 1: 2 right, 1 missed, 1 wrong. Classes 2 and 3 are not in the truth.
    found = overlaps_of_classes(count_pixels(truth, guess, 4))
    np.testing.assert_allclose(found, [2 / 3, 2 / 4, np.nan, np.nan])


@given(
    arrays.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, VOID])),
    arrays.arrays(np.int64, (6, 7), elements=st.integers(0, 2)),
)
def test_overlaps_equal_those_of_torchmetrics(truth, guess):
    ours = overlaps_of_classes(count_pixels(truth, guess, 3))
    theirs = multiclass_jaccard_index(
        torch.from_numpy(guess),
        torch.from_numpy(truth.astype(np.int64)),
        num_classes=3,
        average=None,
        ignore_index=VOID,
    ).numpy()
    there = np.isin([0, 1, 2], truth)
    np.testing.assert_allclose(ours[there], theirs[there], rtol=1e-6)
    assert np.isnan(ours[~there]).all()
