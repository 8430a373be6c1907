import dataclasses

import numpy as np
import pytest
from probed_scenes import context, encode, evidence_of, grain, jigsaw, scene

from pipeline.audit.chroma import add_aberration, color_shifts, probe_chroma
from pipeline.audit.edges import probe_edges
from pipeline.audit.evidence import nothing
from pipeline.audit.position import probe_blocks, probe_places
from pipeline.audit.rotation_cues import probe_turns
from pipeline.audit.tile_statistics import probe_moments, probe_spectrum
from pipeline.pretext.plan import GRAY
from pipeline.pretext.rotation import RotationConfig

OF_TILES = (
    probe_edges,
    probe_moments,
    probe_chroma,
    probe_places,
    probe_blocks,
    probe_spectrum,
)
ROTATION = RotationConfig(name="rotation", crop_px=64)


def leak(answers):
    return (answers.right.mean() - answers.chance) / (1 - answers.chance)


@pytest.fixture(scope="module")
def scenes():
    return encode(scene(number) for number in range(60))


@pytest.fixture(scope="module")
def grains():
    return encode(grain(number) for number in range(100))


@pytest.mark.parametrize("task", [jigsaw(), context(), ROTATION], ids=lambda task: task.name)
@pytest.mark.parametrize("probe", [*OF_TILES, probe_turns], ids=lambda probe: probe.__name__)
def test_answers_are_shares_about_images_and_the_same_for_the_same_seed(scenes, probe, task):
    evidence = evidence_of(task, scenes[:12])
    answers = probe(evidence, seed=3)
    assert len(answers.right) == len(answers.image)
    assert ((answers.right >= 0) & (answers.right <= 1)).all()
    assert ((answers.image >= 0) & (answers.image < 12)).all()
    assert answers.image.dtype == np.int64
    assert all(np.isfinite(value) for value in answers.detail.values())
    again = probe(evidence, seed=3)
    np.testing.assert_array_equal(answers.right, again.right)
    np.testing.assert_array_equal(answers.image, again.image)
    assert answers.detail == again.detail


def test_a_probe_says_nothing_of_a_task_that_it_does_not_fit(scenes):
    turned, cut = evidence_of(ROTATION, scenes[:4]), evidence_of(jigsaw(), scenes[:4])
    for probe in OF_TILES:
        assert len(probe(turned, seed=0).right) == 0
    assert len(probe_turns(cut, seed=0).right) == 0
    assert nothing(0.5).chance == 0.5


@pytest.mark.parametrize("task", [jigsaw(), context()], ids=lambda task: task.name)
def test_tiles_without_a_gap_are_put_together_by_their_borders(scenes, task):
    answers = probe_edges(evidence_of(task, scenes), seed=0)
    assert answers.chance == 1 / (task.num_tiles - 1)
    assert leak(answers) > 0.7


def test_a_gap_hides_borders(scenes):
    scores = [
        leak(probe_edges(evidence_of(jigsaw(crop_px=3 * (48 + gap)), scenes), seed=0))
        for gap in (0, 4, 16)
    ]
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] < 0.2


def test_borders_alone_solve_puzzles_without_a_gap_and_no_others(scenes, grains):
    near = probe_edges(evidence_of(jigsaw(), scenes), seed=0)
    apart = probe_edges(evidence_of(jigsaw(crop_px=192), grains), seed=0)
    assert near.detail["solved"] > 0.9
    assert apart.detail["solved"] < 0.15  # Chance is 1 in 50.


def test_a_flat_tile_has_no_best_neighbour():
    flat = encode(np.full((200, 200, 3), 90, np.uint8) for _ in range(4))
    answers = probe_edges(evidence_of(jigsaw(), flat), seed=0)
    np.testing.assert_allclose(answers.right, answers.chance)


def test_brightness_tells_neighbours_unless_each_tile_is_normalised_on_its_own():
    shaded = []
    for number in range(100):  # The same grain everywhere: only brightness differs.
        rng = np.random.default_rng(number)
        down, right = np.meshgrid(*[np.linspace(-1, 1, 200)] * 2, indexing="ij")
        slope = rng.normal(size=2)
        shade = 50 * (slope[0] * down + slope[1] * right) / np.linalg.norm(slope)
        pixels = 128 + shade[..., None] + rng.normal(0, 30, (200, 200, 3))
        shaded.append(np.clip(pixels, 0, 255).astype(np.uint8))
    # Small tiles: little of the slope is inside them.
    cut = evidence_of(jigsaw(tile_px=24), encode(shaded))
    fixed = dataclasses.replace(cut, task=jigsaw(tile_px=24, normalization="fixed"))
    assert leak(probe_moments(fixed, seed=0)) > 0.25
    assert abs(leak(probe_moments(cut, seed=0))) < 0.1


def test_shifts_between_colors_are_measured_to_a_tenth_of_a_pixel():
    large = scene(5, px=256)[..., 1].astype(np.float32)
    # Averages of 4 x 4 px: a shift by one large pixel is a quarter of a small one.
    green, red, blue = (
        large[4:-4, 4 + by : 252 + by].reshape(62, 4, 62, 4).mean(axis=(1, 3)) for by in (0, 2, -1)
    )
    found = color_shifts(np.stack([red, green, 0.5 * blue + 20])[None, None])[0, 0]
    np.testing.assert_allclose(found, [[0, -0.5], [0, 0.25]], atol=0.1)


def test_equal_channels_have_no_shift():
    gray = np.repeat(scene(1)[None, None, :64, :64, :1].transpose(0, 1, 4, 2, 3), 3, axis=2)
    assert not color_shifts(gray.astype(np.float32)).any()


def test_aberration_magnifies_red_about_the_centre():
    image = np.zeros((200, 300, 3), np.uint8)
    image[98:102, 148:152] = 255  # Stays.
    image[98:102, 250:254] = 255  # Lies 102 px to the right of it: moves by 0.4 px.
    before, moved = image[..., 0].astype(float), add_aberration(image, 1.004)
    red = moved[..., 0].astype(float)
    columns = np.arange(300)
    for part, by in ((slice(140, 160), 0), (slice(242, 262), 0.41)):
        centre = [np.average(columns[part], weights=p[:, part].sum(axis=0)) for p in (before, red)]
        assert centre[1] - centre[0] == pytest.approx(by, abs=0.05)
    np.testing.assert_array_equal(moved[..., 1:], image[..., 1:])
    np.testing.assert_array_equal(add_aberration(image, 1), image)


@pytest.mark.parametrize("task", [jigsaw(), context(gap_px=20)], ids=lambda task: task.name)
def test_aberration_tells_the_side_and_grows_with_the_dose(task):
    scores = []
    for factor in (1, 1.001, 1.004):
        pixels = [add_aberration(scene(number), factor) for number in range(60)]
        scores.append(leak(probe_chroma(evidence_of(task, encode(pixels)), seed=0)))
    assert abs(scores[0]) < 0.15
    assert scores[1] > 0.25
    assert scores[2] > max(0.8, scores[1])


def test_shifted_channels_hide_aberration_and_gray_tiles_split_the_answers():
    pixels = encode(add_aberration(scene(number), 1.004) for number in range(60))
    hidden = evidence_of(jigsaw(channel_shift_px=4, tile_px=44), pixels)
    assert abs(leak(probe_chroma(hidden, seed=0))) < 0.25
    cut = evidence_of(jigsaw(gray_probability=0.5), pixels)
    answers = probe_chroma(cut, seed=0)
    gray = cut.plan.colors[answers.image, 0] == GRAY
    assert set(answers.right[gray]) == {0.5}
    assert set(answers.right[~gray]) == {0, 1}
    assert answers.detail["colored"] == pytest.approx((cut.plan.colors != GRAY).mean())
