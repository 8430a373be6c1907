import numpy as np
import pytest
from PIL import Image
from probed_scenes import context, encode, evidence_of, grain, jigsaw, scene

from pipeline.audit.position import probe_blocks, probe_places
from pipeline.audit.rotation_cues import probe_turns
from pipeline.audit.tile_statistics import probe_moments, probe_spectrum
from pipeline.pretext.rotation import RotationConfig


def leak(answers):
    return (answers.right.mean() - answers.chance) / (1 - answers.chance)


@pytest.fixture(scope="module")
def grains():
    return encode(grain(number) for number in range(100))


@pytest.mark.parametrize("task", [jigsaw(), context()], ids=lambda task: task.name)
@pytest.mark.parametrize(
    ("probe", "most"),
    # Two to three standard errors of 100 images.
    [(probe_places, 0.06), (probe_spectrum, 0.06), (probe_moments, 0.12), (probe_blocks, 0.12)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_without_content_leave_chance(grains, probe, most, task):
    assert abs(leak(probe(evidence_of(task, grains), seed=0))) < most


def test_turns_of_images_without_content_are_not_told(grains):
    task = RotationConfig(name="rotation", crop_px=96)
    assert abs(leak(probe_turns(evidence_of(task, grains), seed=0))) < 0.12


def test_a_shadow_that_lies_alike_in_all_images_tells_the_cell():
    shadow = np.linspace(0.3, 1, 200)[:, None, None] * np.linspace(0.5, 1, 200)[:, None]
    pixels = encode((grain(number) * shadow).astype(np.uint8) for number in range(60))
    task = jigsaw(normalization="fixed", min_scale=0.9)
    answers = probe_places(evidence_of(task, pixels), seed=0)
    assert leak(answers) > 0.5
    assert answers.detail["row"] > 0.7
    assert answers.detail["column"] > 0.7


def test_a_lens_that_is_sharper_in_the_middle_tells_the_cell_by_its_spectrum():
    middle = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 200)] * 2))[..., None] < 0.4
    pixels = []
    for number in range(60):
        sharp = scene(number)
        soft = np.asarray(Image.fromarray(sharp).reduce(2).resize((200, 200)))
        pixels.append(np.where(middle, sharp, soft))
    task = jigsaw(min_scale=1)
    answers = probe_spectrum(evidence_of(task, encode(pixels)), seed=0)
    assert leak(answers) > 0.08
    even = encode(scene(number) for number in range(60))
    assert leak(probe_spectrum(evidence_of(task, even), seed=0)) < 0.05


@pytest.mark.parametrize("quality", [60, 80])
def test_jpeg_cut_at_the_size_it_is_stored_at_tells_the_cell_by_its_blocks(quality):
    px = 201  # Cells of 67 px: 3 more than 8 blocks.
    pixels = encode((scene(n, px) for n in range(60)), format="JPEG", quality=quality)
    stored = evidence_of(jigsaw(crop_px=px, tile_px=67, min_scale=1), pixels, px)
    answers = probe_blocks(stored, seed=0)
    assert answers.chance == 1 / 3
    assert leak(answers) > 0.6
    assert answers.detail["bits"] > 0.6
    scaled = evidence_of(jigsaw(crop_px=px, tile_px=67), pixels, px)
    answers = probe_blocks(scaled, seed=0)
    assert abs(leak(answers)) < 0.12
    assert abs(answers.detail["bits"]) < 0.05


def test_light_from_above_tells_the_turn():
    light = np.linspace(1, 0.5, 200)[:, None, None]
    pixels = encode((grain(number) * light).astype(np.uint8) for number in range(60))
    task = RotationConfig(name="rotation", crop_px=96)
    answers = probe_turns(evidence_of(task, pixels), seed=0)
    assert leak(answers) > 0.8
    assert answers.detail["layout"] > 0.9


def test_chroma_of_half_the_width_tells_two_turns_from_the_others():
    pixels = encode((grain(n) for n in range(60)), format="JPEG", quality=95, subsampling="4:2:2")
    answers = probe_turns(evidence_of(RotationConfig(name="rotation", crop_px=96), pixels), seed=0)
    assert answers.detail["gradients"] > 0.4  # A half is the most that it can be.
