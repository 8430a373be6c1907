from dataclasses import replace

import numpy as np
import pytest

from pipeline.audit.evidence import Evidence, score_of
from pipeline.audit.limits import BORDERS, CODES, DRAWS
from pipeline.audit.planted import alike_in_pairs, crop_beyond, skip_last_place
from pipeline.audit.position import probe_borders
from pipeline.audit.uniformity import draw, probe_codes, probe_draws
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import plan_task
from pipeline.pretext.permutation_set import permutation_set
from pipeline.pretext.rotation import RotationConfig

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=8, channel_shift_px=1, gray_probability=0)
ROTATION = RotationConfig(name="rotation", crop_px=16)
TASKS = [
    JigsawConfig(name="jigsaw"),
    ContextConfig(name="context"),
    RotationConfig(name="rotation"),
]


def noise(task, num=120):
    """Views of images that show noise."""
    tiles, sides = task.tiles, np.full(num, 64, np.int32)
    shape = (num, tiles.num_tiles, tiles.tile_px, tiles.tile_px, 3)
    views = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    plan = plan_task(task, sides, sides, Draws(0, 0, np.arange(num)))
    return Evidence(task, views, plan, np.arange(num), sides, sides)


def borders(evidence):
    return score_of(probe_borders(evidence, seed=0), seed=0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_draws_are_even_independent_and_never_shared_by_ranks(task):
    score = probe_draws(draw(task, seed=0))
    assert score.value <= DRAWS.limit
    assert score.detail["effect"] == 0
    assert score.detail["p"] > 0.001


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_same_seed_on_every_rank_is_caught(task):
    score = probe_draws(draw(task, seed=0, keyed_by_slot=True))
    assert score.low > DRAWS.limit
    assert score.detail["shared"] == 1


def test_a_jitter_without_its_last_place_is_uneven():
    drawn = draw(JIGSAW, seed=0)
    uneven = probe_draws(replace(drawn, plan=skip_last_place(drawn.plan, JIGSAW)))
    assert uneven.low > DRAWS.limit
    assert uneven.detail["p"] == 0


def test_labels_that_follow_the_rank_are_caught():
    drawn = draw(JIGSAW, seed=0)
    labels = drawn.plan.labels.copy()
    labels[:, 0] = (labels[:, 0] // 2 + 500 * (drawn.rank % 2)) % JIGSAW.num_permutations
    assert probe_draws(replace(drawn, plan=replace(drawn.plan, labels=labels))).low > DRAWS.limit


@pytest.mark.parametrize(("tiles", "size"), [(9, 100), (9, 1000), (9, 2000), (4, 24), (16, 500)])
def test_sets_of_the_largest_minimal_distance_have_no_near_members(tiles, size):
    assert probe_codes(permutation_set("max_min", tiles, size, seed=0)).value == 0


def test_near_members_of_a_set_are_caught():
    perms = permutation_set("max_min", 9, 100, seed=0)
    planted = alike_in_pairs(perms)
    assert (np.sort(planted, axis=1) == np.arange(9)).all()
    score = probe_codes(planted)
    assert score.low > CODES.limit
    assert (score.value, score.detail["min_distance"], score.detail["pairs"]) == (1, 2, 50)


@pytest.mark.parametrize("task", [JIGSAW, ROTATION], ids=lambda task: task.name)
def test_borders_of_noise_tell_nothing(task):
    score = borders(noise(task))
    assert score.value == 0
    assert score.detail == {"flat": 0, "p": 1}


def test_images_of_one_color_have_flat_borders_that_tell_nothing():
    evidence = noise(JIGSAW)
    plain = np.broadcast_to(evidence.views[:, :1, :1, :1], evidence.views.shape)
    score = borders(replace(evidence, views=plain))
    assert (score.value, score.detail["flat"]) == (0, 1)


def test_zeros_beyond_the_image_are_caught():
    evidence = noise(JIGSAW)
    score = borders(replace(evidence, views=crop_beyond(evidence.views, JIGSAW.grid)))
    # Of nine cells four are told: three rims at the right and below, and their corner.
    assert score.low > BORDERS.limit
    assert score.value == pytest.approx((4 / 9 - 1 / 9) / (8 / 9), abs=0.01)


def test_a_bar_that_stays_upright_while_views_turn_is_caught():
    evidence = noise(ROTATION)
    four = np.repeat(evidence.views, 4, axis=1)
    four[:, 1, :, :2] = 0  # The turn by 90 degrees leaves the left empty.
    assert borders(replace(evidence, views=four)).low > BORDERS.limit


def test_a_bar_in_the_image_itself_turns_with_it():
    evidence = noise(ROTATION)
    views = evidence.views.copy()
    views[:, 0, -2:] = 0  # Below, in every image: a caption tells which side is up.
    assert borders(replace(evidence, views=views)).value == 1
