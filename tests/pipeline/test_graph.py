import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import crop_graph, tile_graph
from pipeline.loading.crops import central_squares
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.pretext.plan import GRAY, RGB
from pipeline.reference import crop_view, tile_views

CALTECH = Path(__file__).parents[3] / "shared/data/caltech101"

GEOMETRIES = [
    JigsawConfig(name="jigsaw", gray_probability=0.5),  # That of the paper.
    JigsawConfig(name="jigsaw", crop_px=129, tile_px=32, min_scale=0.6, gray_probability=0.5),
]

SAVES = [
    {"subsampling": 2},  # 4:2:0
    {"subsampling": 0},  # 4:4:4
    {"subsampling": 1, "quality": 50},  # 4:2:2
    {"subsampling": 2, "progressive": True},
    {"subsampling": 2, "optimize": True, "restart_marker_blocks": 3},
]


def photo(seed, width, height):
    """Clouds, edges and a little noise: what a JPEG of a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    rows, columns = np.mgrid[:height, :width]
    pixels[(rows * 3 + columns * 2) % 97 < 20] //= 2
    pixels += rng.integers(-12, 13, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image, **options):
    sink = io.BytesIO()
    image.save(sink, **options)
    return sink.getvalue()


@pytest.fixture(scope="module")
def jpegs():
    """Every way to save a JPEG, in odd sizes, in colour and in gray."""
    sizes = [(300, 200), (201, 333), (60, 61), (517, 259)]
    return [
        encode(photo(7 * i + j, *size).convert(mode), format="JPEG", **options)
        for i, options in enumerate(SAVES)
        for j, (size, mode) in enumerate(zip(sizes, ("RGB", "RGB", "RGB", "L"), strict=True))
    ]


def sizes_of(encoded):
    sizes = [Image.open(io.BytesIO(data)).size for data in encoded]
    widths, heights = np.array(sizes, dtype=np.int32).T
    return heights, widths


def options_for(encoded, **changes):
    base = {"max_batch": len(encoded), "num_threads": 1, "device_id": None, "prefetch": 1}
    return GraphOptions(**{**base, **changes})


def run_once(build, encoded, *arrays, **changes):
    """Push one batch through a graph."""
    batch = ([np.frombuffer(data, np.uint8) for data in encoded], *arrays)
    feed = iter([batch])
    return build(lambda: next(feed), options_for(encoded, **changes)).run().numpy()


def run_tiles(encoded, config, plan, **changes):
    return run_once(
        lambda feed, options: tile_graph(feed, [config.tiles], options),
        encoded,
        *plan.arrays(),
        **changes,
    )


def run_whole(encoded, crops, px):
    build = lambda feed, options: crop_graph(feed, options, px=px, num_views=1)  # noqa: E731
    return run_once(build, encoded, crops[:, None], np.zeros((len(crops), 1), np.int32))[:, 0]


def assert_close(views, expected):
    assert views.dtype == expected.dtype == np.uint8
    assert views.shape == expected.shape
    difference = np.abs(views.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.25  # Rounding, not a shift: that would pass in smooth places.


@pytest.mark.parametrize("config", GEOMETRIES, ids=["paper", "small"])
def test_tiles_are_those_of_the_reference(jpegs, config):
    plan = plan_jigsaw(config, *sizes_of(jpegs), Draws(3, 0, np.arange(len(jpegs))))
    assert set(plan.colors[:, 0]) == {RGB, GRAY}
    views = run_tiles(jpegs, config, plan)
    assert views.shape == (len(jpegs), 9, config.tile_px, config.tile_px, 3)
    assert_close(views, tile_views(jpegs, config.tiles, plan))


def test_gray_images_have_equal_channels_and_others_keep_their_colours(jpegs):
    colour = [data for data in jpegs if Image.open(io.BytesIO(data)).mode == "RGB"]
    config = GEOMETRIES[1]
    plan = plan_jigsaw(config, *sizes_of(colour), Draws(3, 0, np.arange(len(colour))))
    views = run_tiles(colour, config, plan)
    spread = np.ptp(views, axis=-1).max(axis=(1, 2, 3))
    assert (spread[plan.colors[:, 0] == GRAY] == 0).all()
    assert (spread[plan.colors[:, 0] == RGB] > 20).all()


@pytest.mark.parametrize("px", [224, 64])
def test_a_whole_view_is_that_of_the_reference(jpegs, px):
    crops = central_squares(*sizes_of(jpegs))
    expected = np.stack([crop_view(d, c, px) for d, c in zip(jpegs, crops, strict=True)])
    assert_close(run_whole(jpegs, crops, px), expected)


# One pixel, sides below the filter's width, far up, far down, long and thin.
TINY_AND_HUGE = [(1, 1), (2, 3), (3, 200), (40, 40), (1900, 2100), (64, 2500)]


@pytest.mark.parametrize("size", TINY_AND_HUGE)
@pytest.mark.parametrize("config", GEOMETRIES, ids=["paper", "small"])
def test_any_size_gives_the_tiles_of_the_reference(size, config):
    encoded = [encode(photo(11, *size), format="PNG")] * 8
    plan = plan_jigsaw(config, *sizes_of(encoded), Draws(5, 0, np.arange(8)))
    assert_close(run_tiles(encoded, config, plan), tile_views(encoded, config.tiles, plan))


def test_crops_that_are_not_square_are_those_of_the_reference():
    encoded = [encode(photo(5, 300, 200), format="PNG")]
    crops = np.array([[10, 20, 150, 260]], np.int32)
    expected = crop_view(encoded[0], crops[0], 96)[None]
    assert_close(run_whole(encoded, crops, 96), expected)


def indexed(height, width):
    """A lossless image whose every pixel says where it stands."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256], axis=2)
    return encode(Image.fromarray(pixels.astype(np.uint8)), format="PNG")


def test_every_pixel_of_every_tile_is_where_the_plan_says():
    # A crop as large as its view: the resize changes nothing.
    config = JigsawConfig(
        name="jigsaw", crop_px=129, tile_px=32, gray_probability=0, channel_shift_px=2
    )
    sizes = [(129, 129), (300, 200), (200, 700), (129, 400)]
    heights, widths = np.array(sizes, dtype=np.int32).T
    plan = plan_jigsaw(config, heights, widths, Draws(0, 0, np.arange(4)))
    # Corners and inner places; the last crop ends at the edges of its image.
    top, left = np.array([0, 100, 1, 0]), np.array([0, 3, 571, 271])
    plan.crops[:] = np.stack([top, left, np.full(4, 129), np.full(4, 129)], axis=1)
    views = run_tiles([indexed(*size) for size in sizes], config, plan).astype(int)

    inside = np.arange(32)
    # Each channel is taken off its own place: (B, T, 3, 2).
    first = (plan.crops[:, None, :2] + plan.anchors)[:, :, None] + plan.shifts
    rows = first[..., 0, None, None] + inside[:, None]
    columns = first[..., 1, None, None] + inside
    assert plan.shifts.max() == 2
    assert (views[..., 0] == rows[:, :, 0] % 256).all()
    assert (views[..., 1] == columns[:, :, 1] % 256).all()
    assert (views[..., 2] == rows[:, :, 2] // 256 * 16 + columns[:, :, 2] // 256).all()


def test_every_pixel_of_a_whole_view_is_where_the_crop_says():
    crops = np.array([[5, 70, 100, 100]], dtype=np.int32)
    (view,) = run_whole([indexed(120, 170)], crops, 100)
    rows, columns = np.mgrid[:100, :100]
    assert (view[..., 0] == rows + 5).all()
    assert (view[..., 1] == columns + 70).all()


def test_threads_and_prefetch_do_not_change_a_pixel(jpegs):
    config = GEOMETRIES[1]
    plan = plan_jigsaw(config, *sizes_of(jpegs), Draws(3, 0, np.arange(len(jpegs))))
    one = run_tiles(jpegs, config, plan)
    assert (run_tiles(jpegs, config, plan, num_threads=2, prefetch=3) == one).all()


def test_a_batch_stays_valid_after_later_runs(jpegs):
    crops = central_squares(*sizes_of(jpegs))
    payloads = [np.frombuffer(data, np.uint8) for data in jpegs]
    half = len(jpegs) // 2
    parts = [np.s_[:half], np.s_[half:], *[np.s_[:half]] * 6]
    upright = np.zeros((len(crops), 1), np.int32)
    batches = iter([(payloads[part], crops[part, None], upright[part]) for part in parts])
    options = options_for(jpegs, prefetch=2)
    graph = crop_graph(lambda: next(batches), options, px=64, num_views=1)
    views = [graph.run() for _ in parts]
    before = views[1].clone()
    assert (views[0] == views[2]).all()
    assert (views[1] == before).all()
    assert (before != views[0]).any()
    with pytest.raises(StopIteration):
        graph.run()


@pytest.mark.skipif(not CALTECH.is_dir(), reason=f"no photographs at {CALTECH}")
@pytest.mark.parametrize("config", GEOMETRIES, ids=["paper", "small"])
def test_tiles_of_real_photographs_are_those_of_the_reference(config):
    files = sorted(CALTECH.rglob("*.jpg"))
    photos = [path.read_bytes() for path in files[:: len(files) // 32][:32]]
    plan = plan_jigsaw(config, *sizes_of(photos), Draws(5, 0, np.arange(32)))
    assert_close(run_tiles(photos, config, plan), tile_views(photos, config.tiles, plan))
