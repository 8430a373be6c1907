import math

import numpy as np
import pytest
from PIL import Image

from pipeline.explain.pictures.countermeasures import (
    DETAIL_PX,
    MAGNIFIED,
    Measure,
    Untouched,
    image_parts,
    magnified,
    measure_parts,
    measures_of,
)
from pipeline.explain.pictures.drawing import Square, TileSheet, arrow_between, sheet_of
from pipeline.explain.step import explain_step, open_subject
from pipeline.loading.data import DataConfig
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.rotation import RotationConfig

JIGSAW = JigsawConfig(
    name="jigsaw",
    crop_px=48,
    tile_px=12,
    channel_shift_px=1,
    gray_probability=0.4,
    projection_probability=0.3,
    intensity_jitter=9,
    max_foreign_tiles=2,
    num_permutations=20,
)
CONTEXT = ContextConfig(
    name="context", patch_px=12, gap_px=6, jitter_px=2, min_pixels=2000, max_pixels=4000
)
ROTATION = RotationConfig(name="rotation", crop_px=24, gray_probability=0.5)
BOTH = MultitaskConfig(name="multitask", tasks=(JIGSAW, CONTEXT, ROTATION), weights=(1, 1, 1))
PLAIN = JigsawConfig(
    name="jigsaw",
    crop_px=48,
    tile_px=16,
    channel_shift_px=0,
    gray_probability=0,
    normalization="fixed",
    num_permutations=20,
)


def explained(shards, pretext):
    order = OrderConfig(global_batch=24, num_lanes=6, window=20)
    subject = open_subject(DataConfig(manifest=str(shards)), order, pretext, seed=0)
    return explain_step(subject, 0, 0, RankInfo(0, 1))


def cut(sheet: TileSheet, image: Image.Image, count):
    """The tiles of a sheet, as they were before they were enlarged."""
    pixels, large = np.asarray(image.convert("RGB")), sheet.tile_px * sheet.scale
    corners = [sheet.place(number) for number in range(count)]
    found = [pixels[y : y + large, x : x + large] for x, y in corners]
    return np.stack([tile[:: sheet.scale, :: sheet.scale] for tile in found])


def named(parts):
    return {drawing.name: drawing for part in parts for drawing in part.drawings}


def one(drawings, end):
    (found,) = [drawing for name, drawing in drawings.items() if name.endswith(end)]
    return found


def test_the_shuffled_sheet_is_the_tiles_in_permuted_order(shards):
    step = explained(shards, JIGSAW)
    drawings, sheet = named(image_parts(JIGSAW, JIGSAW, step, 1)), sheet_of(JIGSAW)
    order = cut(sheet, one(drawings, "-order.png").image, 9)
    shuffled = cut(sheet, one(drawings, "-shuffled.png").image, 9)
    assert (order == step.views[0]).all()
    permutation = permutations_of(JIGSAW)[step.samples[0].draws[0].permutations[0]]
    assert (shuffled == order[permutation]).all()
    assert not (shuffled == order).all()


def test_a_pair_is_drawn_first_patch_first(shards):
    step = explained(shards, CONTEXT)
    drawings = named(image_parts(CONTEXT, CONTEXT, step, 1))
    pair = step.samples[0].draws[0].pairs[0]
    drawn = cut(sheet_of(CONTEXT), one(drawings, "-pair.png").image, 2)
    assert (drawn == step.views[0][[pair.first, pair.second]]).all()
    assert one(drawings, "-pair.png").caption.endswith(f"{pair.direction}.")


def test_turns_are_those_of_the_square(shards):
    step = explained(shards, ROTATION)
    drawn = one(named(image_parts(ROTATION, ROTATION, step, 1)), "-turns.png")
    square = step.views[0, 0]
    turned = np.stack([np.rot90(square, turns) for turns in range(4)])
    assert (cut(sheet_of(ROTATION), drawn.image, 4) == turned).all()


@pytest.mark.parametrize(
    ("down", "right"), [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
)
def test_an_arrow_points_from_the_first_square_to_the_second(down, right):
    first = Square(100, 100, 20)
    second = Square(100 + 40 * right, 100 + 40 * down, 20)
    arrow = arrow_between(first, second)
    way = np.subtract(arrow.tip, arrow.tail)
    assert np.allclose(way / math.hypot(*way), np.array([right, down]) / math.hypot(right, down))
    away = [math.dist(point, second.middle) for point in (arrow.tip, *arrow.head, arrow.tail)]
    assert away[0] < away[1] < away[3]
    assert away[1] == pytest.approx(away[2])
    assert math.dist(arrow.tail, first.middle) < first.side / 2
    assert away[0] < second.side / 2


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (
            JIGSAW,
            ["gap", "channel-shift", "intensity", "projection", "gray", "foreign", "normalization"],
        ),
        (CONTEXT, ["gap", "reduced", "drop", "normalization"]),
        (ROTATION, ["mirror", "gray", "normalization"]),
        (PLAIN, []),  # Nothing is switched on.
    ],
)
def test_every_countermeasure_that_is_on_is_shown_once(shards, task, names):
    measures = list(measures_of(task, task, explained(shards, task)))
    assert [measure.name for measure in measures] == names
    for measure in measures:
        assert isinstance(measure, Measure)
        if measure.before.shape == measure.after.shape:
            assert (measure.before != measure.after).any()


def test_only_the_one_countermeasure_differs(shards):
    only_gray = PLAIN.model_copy(update={"gray_probability": 0.5})
    step = explained(shards, only_gray)
    (measure,) = measures_of(only_gray, only_gray, step)
    luma = np.rint(measure.before @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(luma - measure.after[..., 0]).max() <= 3  # Two decoders.
    assert np.ptp(measure.after.astype(int), axis=3).max() == 0
    assert step.samples[measure.row].draws[0].gray


def test_cells_meet_where_tiles_do_not(shards):
    step = explained(shards, JIGSAW)
    gap = next(iter(measures_of(JIGSAW, JIGSAW, step)))
    assert gap.before.shape[1] == JIGSAW.cell_px
    assert gap.after.shape[1] == JIGSAW.tile_px
    drawings = named(measure_parts(JIGSAW, JIGSAW, step))
    assert one(drawings, "-gap-before.png").image.width == 3 * 16 * sheet_of(JIGSAW).scale + 4


def test_what_no_image_drew_is_said(shards):
    rare = PLAIN.model_copy(update={"gray_probability": 1e-9})
    step = explained(shards, rare)
    assert list(measures_of(rare, rare, step)) == [Untouched("gray", "Shown in gray", 24)]
    (part,) = measure_parts(rare, rare, step)
    assert part.text == "On, but drawn for none of the 24 images that were planned."


def test_each_of_several_tasks_is_drawn_as_alone(shards):
    together = explained(shards, BOTH)
    for task in BOTH.tasks:
        alone = explained(shards, task)
        expected = named([*image_parts(task, task, alone, 2), *measure_parts(task, task, alone)])
        drawn = named([*image_parts(BOTH, task, together, 2), *measure_parts(BOTH, task, together)])
        assert list(drawn) == list(expected)
        for name, drawing in drawn.items():
            assert drawing.image.tobytes() == expected[name].image.tobytes(), name


def test_the_detail_is_where_tiles_differ_most():
    before = np.zeros((2, 40, 40, 3), np.uint8)
    after = before.copy()
    after[1, 10:34, 12:36] = 200
    first, second = magnified(before, after)
    assert first.size == second.size == (DETAIL_PX * MAGNIFIED,) * 2
    assert np.asarray(first).max() == 0
    assert np.asarray(second).min() == 200
