import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ConfigError, parse
from pipeline.pretext.draws import Draws
from pipeline.pretext.normalize import normalize, quarter_turns, see
from pipeline.pretext.rotation import RotationConfig, plan_rotation


def many(num=4000, size=(300, 400), **changes):
    config = RotationConfig(name="rotation", **changes)
    heights, widths = np.full(num, size[0], np.int32), np.full(num, size[1], np.int32)
    return plan_rotation(config, heights, widths, Draws(0, 0, np.arange(num)))


def test_squares_lie_inside_and_reach_both_ends_of_the_scale():
    top, left, height, width = many().crops.T
    assert (height == width).all()
    assert (height.min(), height.max()) == (150, 300)
    assert ((top >= 0) & (left >= 0) & (top + height <= 300) & (left + width <= 400)).all()


def test_all_four_turns_of_every_image_are_asked():
    plan = many(10)
    assert (plan.labels == [0, 1, 2, 3]).all()
    assert (plan.anchors == 0).all()


@pytest.mark.parametrize(("probability", "share"), [(0, 0), (1, 1), (0.5, 0.5)])
def test_the_configured_share_of_images_is_mirrored(probability, share):
    assert many(mirror_probability=probability).mirrored.mean() == pytest.approx(share, abs=0.03)


def test_turns_are_those_of_the_image_itself():
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (3, 1, 20, 20, 3), dtype=np.uint8)
    turned = quarter_turns(torch.from_numpy(views)).numpy()
    assert turned.shape == (3, 4, 20, 20, 3)
    for b in range(3):
        image = Image.fromarray(views[b, 0])
        for turn, degrees in enumerate((0, 90, 180, 270)):
            # Pillow turns counterclockwise; right angles are exact.
            assert (turned[b, turn] == np.asarray(image.rotate(degrees))).all()


def test_undoing_the_turn_of_each_label_restores_the_original():
    views = torch.randint(0, 256, (2, 1, 9, 9, 3), dtype=torch.uint8)
    turned = quarter_turns(views)
    for turn in range(4):
        assert (turned[:, turn].rot90(-turn, dims=(1, 2)) == views[:, 0]).all()


def test_the_network_sees_four_normalised_views_of_each_image():
    views = torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8)
    seen = see(RotationConfig(name="rotation", crop_px=16), views)
    assert seen.shape == (8, 3, 16, 16)
    assert torch.equal(seen, normalize(quarter_turns(views)))


def test_shares_that_do_not_add_up_are_refused():
    raw = {"name": "rotation", "gray_probability": 0.7, "projection_probability": 0.5}
    with pytest.raises(ConfigError) as caught:
        parse(RotationConfig, raw, "rotation")
    assert str(caught.value) == (
        "rotation: gray_probability (=0.7) + projection_probability (=0.5) must be at most 1, is "
        "1.2."
    )
