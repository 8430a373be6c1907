import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError, parse
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.pretext.context import DIRECTIONS, ContextConfig, neighbours, plan_context
from pipeline.pretext.draws import Draws
from pipeline.pretext.plan import COLORS

LAWS = settings(max_examples=100, deadline=None)
SIDES = st.lists(st.integers(1, 5000), min_size=1, max_size=20)
NORTH_TO_SOUTH = {"N": -1, "S": 1}
WEST_TO_EAST = {"W": -1, "E": 1}


@st.composite
def configs(draw):
    grid, patch, gap = draw(st.integers(2, 5)), draw(st.integers(2, 96)), draw(st.integers(0, 48))
    jitter = draw(st.integers(0, gap // 2))
    block = grid * patch + (grid - 1) * gap + 2 * jitter
    least = draw(st.integers(1, block**2))
    return ContextConfig(
        name="context",
        grid=grid,
        patch_px=patch,
        gap_px=gap,
        jitter_px=jitter,
        min_pixels=least,
        max_pixels=block**2 + draw(st.integers(0, 10**6)),
        color=draw(st.sampled_from(["drop", "project", "rgb"])),
        gray_probability=draw(st.floats(0, 1)),
        reduced_probability=draw(st.floats(0, 1)),
    )


def plan_of(config, heights, widths, *, seed=0, epoch=0):
    draws = Draws(seed, epoch, np.arange(len(heights)))
    return plan_context(config, np.array(heights, np.int32), np.array(widths, np.int32), draws)


def many(num=4000, size=(600, 800), **changes):
    return plan_of(ContextConfig(name="context", **changes), [size[0]] * num, [size[1]] * num)


@LAWS
@given(config=configs(), heights=SIDES, widths=SIDES, seed=st.integers(0, 2**63))
def test_every_patch_lies_inside_and_apart_from_its_neighbours(config, heights, widths, seed):
    batch = min(len(heights), len(widths))
    heights, widths = np.array(heights[:batch]), np.array(widths[:batch])
    plan = plan_of(config, heights, widths, seed=seed)
    top, left, height, width = plan.crops.T
    assert (height == width).all()
    assert ((top >= 0) & (left >= 0) & (height >= 1)).all()
    assert ((top + height <= heights) & (left + width <= widths)).all()
    assert (plan.anchors >= 0).all()
    assert (plan.anchors + config.patch_px <= config.block_px).all()
    rows = plan.anchors.reshape(batch, config.grid, config.grid, 2)
    down = np.diff(rows[..., 0], axis=1)  # At least the patch, and a gap less both movements.
    right = np.diff(rows[..., 1], axis=2)
    least = config.patch_px + config.gap_px - 2 * config.jitter_px
    assert (down >= least).all()
    assert (right >= least).all()
    assert ((plan.sides >= 1) & (plan.sides <= config.patch_px)).all()
    assert ((plan.labels >= 0) & (plan.labels < len(neighbours(config.grid)))).all()


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_pairs_are_all_neighbours_in_both_orders_with_directions_equally_often(grid):
    pairs = neighbours(grid)
    counts = np.bincount(pairs[:, 2], minlength=8)
    assert (counts == counts[0]).all()
    seen = {tuple(row) for row in pairs.tolist()}
    for first, second, direction in seen:
        down, right = np.subtract(divmod(second, grid), divmod(first, grid))
        name = DIRECTIONS[direction]
        assert down == NORTH_TO_SOUTH.get(name[0], 0)
        assert right == WEST_TO_EAST.get(name[-1], 0)
        assert (second, first, 7 - direction) in seen  # The other order, the opposite direction.
    assert len(seen) == 2 * (2 * grid * (grid - 1) + 2 * (grid - 1) ** 2)


def test_the_second_patch_of_a_pair_lies_where_the_label_says():
    plan = many(200, grid=3, min_pixels=160_000)
    first, second, direction = np.moveaxis(neighbours(3)[plan.labels], 2, 0)
    rows = np.arange(200)[:, None]
    between = plan.anchors[rows, second] - plan.anchors[rows, first]
    # At most 14 px of movement beside the 144 px from patch to patch.
    down, right = np.moveaxis(np.rint(between / 144).astype(int), 2, 0)
    names = np.array(DIRECTIONS)[direction]
    for name in DIRECTIONS:
        assert (down[names == name] == NORTH_TO_SOUTH.get(name[0], 0)).all()
        assert (right[names == name] == WEST_TO_EAST.get(name[-1], 0)).all()


def test_every_direction_is_asked_evenly():
    config = ContextConfig(name="context")
    directions = neighbours(config.grid)[many().labels.ravel(), 2]
    counts = np.bincount(directions, minlength=8)
    assert np.abs(counts / counts.mean() - 1).max() < 0.05


def test_patches_move_by_the_whole_jitter_evenly():
    plan = many()
    cells = np.array([divmod(t, 2) for t in range(4)]) * 144
    moved = plan.anchors - cells
    counts = np.bincount(moved.ravel(), minlength=15)
    assert len(counts) == 15
    assert np.abs(counts / counts.mean() - 1).max() < 0.06


def test_the_area_of_the_resized_image_is_drawn_evenly():
    plan = many()
    area = 600 * 800 * (254 / plan.crops[:, 2]) ** 2
    assert area.min() == pytest.approx(150_000, rel=0.02)
    assert area.max() == pytest.approx(450_000, rel=0.02)
    assert area.mean() == pytest.approx(300_000, rel=0.02)


def test_an_image_too_small_for_the_block_gives_all_of_its_short_side():
    plan = many(100, size=(200, 1000), min_pixels=65_000, max_pixels=66_000)
    assert (plan.crops[:, 2] == 200).all()


def test_a_third_of_the_patches_is_reduced_to_evenly_drawn_pixel_counts():
    plan = many()
    reduced = plan.sides[plan.sides < 96]
    assert len(reduced) / plan.sides.size == pytest.approx(1 / 3, abs=0.02)
    assert (reduced.min(), reduced.max()) == (10, 95)
    assert np.median(reduced**2.0) == pytest.approx((100 + 95**2) / 2, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"color": "drop"}, {"red": 1 / 3, "green": 1 / 3, "blue": 1 / 3}),
        ({"color": "project"}, {"projected": 1}),
        ({"color": "rgb"}, {"rgb": 1}),
        ({"color": "rgb", "gray_probability": 0.66}, {"gray": 0.66, "rgb": 0.34}),
        ({"color": "project", "gray_probability": 0.5}, {"gray": 0.5, "projected": 0.5}),
    ],
)
def test_colors_are_shown_in_the_configured_shares(changes, shares):
    colors = many(**changes).colors
    assert colors.dtype == np.int32
    for number, name in enumerate(COLORS):
        assert (colors == number).mean() == pytest.approx(shares.get(name, 0), abs=0.03), name


def test_a_dropped_channel_holds_noise_that_does_not_follow_the_image():
    ramp = np.linspace(0, 255, 400)[:, None] * np.ones((1, 400))
    picture = Image.fromarray(np.stack([ramp] * 3, axis=2).astype(np.uint8))
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    payload = np.frombuffer(sink.getvalue(), np.uint8)
    config = ContextConfig(name="context", reduced_probability=0)
    plan = plan_of(config, [400] * 16, [400] * 16)
    options = GraphOptions(max_batch=16, num_threads=1, device_id=None, prefetch=1)
    batch = ([payload] * 16, *plan.arrays())
    feed = iter([batch])
    views = tile_graph(lambda: next(feed), [config.tiles], options).run().numpy()
    for b in range(16):
        for t in range(4):
            kept = COLORS.index("red")
            for c in range(3):
                channel = views[b, t, ..., c].astype(float)
                if plan.colors[b, t] == kept + c:
                    assert channel.std() > 5
                else:
                    assert abs(channel.mean() - 128) < 0.1
                    assert 0.3 < channel.std() < 0.8
                    # Rows of the image differ by a third of the whole range.
                    assert np.ptp(channel.mean(axis=1)) < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"jitter_px": 30},
            "context: jitter_px (=30) of two patches must be at most gap_px (=48): 2 * 30 = 60, "
            "and patches would overlap; lower jitter_px or raise gap_px.",
        ),
        (
            {"max_pixels": 60_000},
            "context: max_pixels (=60000) must be at least 64516: a block of 2 x 2 patches has a "
            "side of 2 * patch_px 96 + 1 * gap_px 48 + 2 * jitter_px 7 = 254, and does not fit; "
            "raise it or lower patch_px.",
        ),
        (
            {"min_pixels": 500_000},
            "context: min_pixels (=500000) must be at most max_pixels (=450000).",
        ),
        ({"color": "sepia"}, "context: color (=sepia): Input should be 'drop', 'project' or 'rgb'"),
    ],
)
def test_a_geometry_that_does_not_fit_shows_the_arithmetic(changes, message):
    with pytest.raises(ConfigError) as caught:
        parse(ContextConfig, {"name": "context", **changes}, "context")
    assert str(caught.value) == message
