import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError, parse
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.pretext.plan import GRAY, RGB

LAWS = settings(max_examples=100, deadline=None)
SIDES = st.lists(st.integers(1, 5000), min_size=1, max_size=20)


@st.composite
def configs(draw):
    grid = draw(st.integers(2, 8))
    cell = draw(st.integers(2, 90))
    return JigsawConfig(
        name="jigsaw",
        grid=grid,
        crop_px=grid * cell,
        tile_px=draw(st.integers(2, cell)),
        channel_shift_px=0,
        min_scale=draw(st.floats(0.001, 1)),
        gray_probability=draw(st.floats(0, 1)),
        num_permutations=draw(st.integers(2, min(10_000, math.factorial(grid * grid)))),
        puzzles_per_image=draw(st.integers(1, 5)),
    )


def plan_of(config, heights, widths, *, seed=0, epoch=0):
    draws = Draws(seed, epoch, np.arange(len(heights)))
    return plan_jigsaw(config, np.array(heights, np.int32), np.array(widths, np.int32), draws)


def many(num=4000, side=300, **changes):
    return plan_of(JigsawConfig(name="jigsaw", **changes), [side] * num, [side] * num)


@LAWS
@given(config=configs(), heights=SIDES, widths=SIDES, seed=st.integers(0, 2**63))
def test_every_cut_lies_inside(config, heights, widths, seed):
    batch = min(len(heights), len(widths))
    heights, widths = np.array(heights[:batch]), np.array(widths[:batch])
    plan = plan_of(config, heights, widths, seed=seed)

    top, left, height, width = plan.crops.T
    assert plan.crops.dtype == np.int32
    assert (height == width).all()
    assert (height >= np.maximum(1, config.min_scale * np.minimum(heights, widths) - 0.5)).all()
    assert ((top >= 0) & (left >= 0)).all()
    assert ((top + height <= heights) & (left + width <= widths)).all()

    cells = [divmod(tile, config.grid) for tile in range(config.num_tiles)]
    inside = plan.anchors - np.array(cells) * config.cell_px
    assert inside.shape == (batch, config.num_tiles, 2)
    assert ((inside >= 0) & (inside + config.tile_px <= config.cell_px)).all()

    assert set(plan.colors.ravel().tolist()) <= {RGB, GRAY}
    assert plan.labels.shape == (batch, config.puzzles_per_image)
    assert ((plan.labels >= 0) & (plan.labels < config.num_classes)).all()


def test_tiles_reach_both_ends_of_their_cell():
    plan = many(grid=3, crop_px=255, tile_px=64, channel_shift_px=0)
    inside = plan.anchors - np.array([divmod(t, 3) for t in range(9)]) * 85
    assert (inside.min(axis=0) == 0).all()
    assert (inside.max(axis=0) == 21).all()
    counts = np.bincount(inside.ravel())
    assert counts.min() > 0.9 * counts.mean()
    assert counts.max() < 1.1 * counts.mean()


def test_a_tile_as_large_as_its_cell_does_not_move():
    anchors = many(
        10, grid=2, crop_px=64, tile_px=32, num_permutations=24, channel_shift_px=0
    ).anchors
    assert (anchors == [[0, 0], [0, 32], [32, 0], [32, 32]]).all()


def test_tiles_move_independently_of_each_other():
    jitter = many(8000, tile_px=64).anchors.reshape(8000, 18)
    correlations = np.corrcoef(jitter.T)[np.triu_indices(18, k=1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(8000)


def test_crops_reach_both_ends_of_the_image_and_of_the_scale():
    plan = many(min_scale=0.5)
    top, left, side, _ = plan.crops.T
    assert (side.min(), side.max()) == (150, 300)
    assert top.min() == left.min() == 0
    for first in (top, left):
        room = (300 - side)[side < 300]
        free = first[side < 300]
        assert (free == room).any()
        assert abs((free / room).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("probability", "share"),
    [
        (0, 0),  # Exactly none.
        (1, 1),  # Exactly all.
        (0.3, pytest.approx(0.3, abs=0.03)),
    ],
)
def test_the_configured_share_of_images_is_gray(probability, share):
    assert (many(gray_probability=probability).colors == GRAY).mean() == share


def test_every_label_is_asked_and_puzzles_of_an_image_differ():
    labels = many(num_permutations=50, puzzles_per_image=4).labels
    counts = np.bincount(labels.ravel(), minlength=50)
    assert counts.min() > 0.75 * counts.mean()
    assert (labels[:, 0] == labels[:, 1]).mean() == pytest.approx(1 / 50, abs=0.01)


def test_an_epoch_brings_new_views_and_the_same_epoch_the_same():
    config = JigsawConfig(name="jigsaw")
    first, again, other = (plan_of(config, [300] * 50, [200] * 50, epoch=e) for e in (0, 0, 1))
    for name in ("crops", "anchors", "shifts", "colors", "labels"):
        assert (getattr(first, name) == getattr(again, name)).all()
        assert (getattr(first, name) != getattr(other, name)).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"crop_px": 256},
            "jigsaw: crop_px (=256) must be a multiple of grid (=3), so that all cells are equal.",
        ),
        (
            {"crop_px": 96},
            "jigsaw: tile_px (=64) + channel_shift_px (=2) must fit into the cell of 32 px "
            "(crop_px 96 / grid 3); lower tile_px or raise crop_px.",
        ),
        (
            {"crop_px": 96, "channel_shift_px": 0},
            "jigsaw: tile_px (=64) must fit into the cell of 32 px (crop_px 96 / grid 3); lower "
            "tile_px or raise crop_px.",
        ),
        (
            {"min_scale": 0.9, "max_scale": 0.8},
            "jigsaw: min_scale (=0.9) must be at most max_scale (=0.8).",
        ),
        (
            {"projection_probability": 0.8},
            "jigsaw: gray_probability (=0.3) + projection_probability (=0.8) must be at most 1, is "
            "1.1.",
        ),
        ({"grid": 9}, "jigsaw: grid (=9): Input should be less than or equal to 8"),
        ({"min_scale": 0}, "jigsaw: min_scale (=0): Input should be greater than 0"),
        (
            {"num_permutations": 1},
            "jigsaw: num_permutations (=1): Input should be greater than or equal to 2",
        ),
        # Derived from num_permutations, so no file can contradict it.
        (
            {"num_classes": 1000},
            "jigsaw: num_classes is no known key; known keys: channel_shift_px, crop_px, "
            "gray_probability, grid, intensity_jitter, max_foreign_tiles, max_scale, min_scale, "
            "name, normalization, num_permutations, permutation_file, permutation_method, "
            "permutation_seed, projection_probability, puzzles_per_image, tile_px.",
        ),
    ],
)
def test_a_geometry_that_does_not_fit_shows_the_arithmetic(changes, message):
    with pytest.raises(ConfigError) as caught:
        parse(JigsawConfig, {"name": "jigsaw", **changes}, "jigsaw")
    assert str(caught.value) == message
