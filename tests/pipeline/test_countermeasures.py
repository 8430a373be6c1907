"""Every pretext and countermeasure: the pixels of the oracle, on either way through DALI."""

import io

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from PIL import Image

from pipeline.dali.graph import Graph, GraphOptions
from pipeline.dali.tiles import compiled_tiles, native_tiles
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import MultitaskConfig, plan_task, tasks_of
from pipeline.pretext.normalize import split_labels, split_views
from pipeline.pretext.rotation import RotationConfig
from pipeline.reference import tile_views

NUM = 10
WAYS = pytest.mark.parametrize("cut", [compiled_tiles, native_tiles], ids=["compiled", "native"])


def jigsaw(**changes):
    base = {"crop_px": 129, "tile_px": 32, "gray_probability": 0, "channel_shift_px": 0}
    return JigsawConfig(**{"name": "jigsaw", **base, **changes})


def context(**changes):
    base = {"patch_px": 48, "gap_px": 20, "jitter_px": 4, "min_pixels": 15_000}
    more = {"max_pixels": 60_000, "color": "rgb", "reduced_probability": 0}
    return ContextConfig(**{"name": "context", **base, **more, **changes})


def rotation(**changes):
    return RotationConfig(**{"name": "rotation", "crop_px": 96, "mirror_probability": 0, **changes})


TASKS = {
    "jigsaw": jigsaw(),
    "jigsaw shift": jigsaw(channel_shift_px=2),
    "jigsaw gray": jigsaw(gray_probability=0.5),
    "jigsaw projection": jigsaw(projection_probability=0.5),
    "jigsaw intensity": jigsaw(intensity_jitter=40),
    "jigsaw all": jigsaw(
        channel_shift_px=2, gray_probability=0.3, projection_probability=0.3, intensity_jitter=9
    ),
    "context": context(),
    "context 3 x 3": context(grid=3, min_pixels=30_000),
    "context drop": context(color="drop"),
    "context projection": context(color="project"),
    "context gray": context(gray_probability=0.5),
    "context reduced": context(reduced_probability=0.7),
    "context paper": ContextConfig(name="context"),
    "rotation": rotation(),
    "rotation mirrored": rotation(mirror_probability=0.5),
    "rotation all": rotation(
        mirror_probability=0.5, gray_probability=0.3, projection_probability=0.3
    ),
}


@pytest.fixture(scope="module")
def images():
    """JPEGs of clouds and edges, 60 to 500 px."""
    encoded = []
    for number in range(NUM):
        rng = np.random.default_rng(number)
        width, height = (int(side) for side in rng.integers(60, 500, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (width // 3, 0, width // 2, height))
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=90, subsampling=(0, 2)[number % 2])
        encoded.append(sink.getvalue())
    return encoded


def plans_of(images, tasks, ids=None):
    sizes = np.array([Image.open(io.BytesIO(data)).size for data in images], np.int32)
    draws = Draws(7, 0, np.arange(len(images)) if ids is None else ids)
    return [plan_task(task, sizes[:, 1], sizes[:, 0], draws) for task in tasks]


def run(images, tasks, plans, cut):
    options = GraphOptions(max_batch=len(images), num_threads=2, device_id=None, prefetch=1)
    payloads = [np.frombuffer(data, np.uint8) for data in images]
    feed = iter([(payloads, *(array for plan in plans for array in plan.arrays()))])
    tiles = [task.tiles for task in tasks]

    @pipeline_def(**options.pipeline_arguments())
    def graph():
        found = cut(lambda: next(feed), tiles, options)
        if len(found) == 1:
            return found[0]
        return fn.cat(*(fn.reshape(one, shape=[-1], layout="") for one in found))

    return Graph(graph()).run().numpy()


@WAYS
@pytest.mark.parametrize("name", TASKS)
def test_views_are_those_of_the_reference(images, name, cut):
    task = TASKS[name]
    (plan,) = plans_of(images, [task])
    views = run(images, [task], [plan], cut)
    expected = tile_views(images, task.tiles, plan)
    assert views.shape == expected.shape
    difference = np.abs(views.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.25


@pytest.mark.parametrize("name", ["shift", "gray", "projection", "intensity"])
def test_a_countermeasure_changes_what_is_seen(images, name):
    tasks = [TASKS["jigsaw"], TASKS[f"jigsaw {name}"]]
    plain, changed = (
        run(images, [task], plans_of(images, [task]), compiled_tiles).astype(int) for task in tasks
    )
    assert np.abs(plain - changed).mean() > 0.5


@WAYS
def test_several_tasks_give_what_each_gives_alone(images, cut):
    tasks = (TASKS["jigsaw all"], TASKS["context paper"], TASKS["rotation all"])
    both = MultitaskConfig(name="multitask", tasks=tasks, weights=(1, 2, 3))
    plans = plans_of(images, tasks)
    parts = split_views(both, torch.from_numpy(run(images, tasks, plans, cut)))
    assert len(parts) == 3
    for task, plan, part in zip(tasks, plans, parts, strict=True):
        assert (part.numpy() == run(images, [task], [plan], cut)).all()


def test_labels_of_several_tasks_are_those_of_each_alone(images):
    tasks = (TASKS["jigsaw"], TASKS["context"], TASKS["rotation"])
    both = MultitaskConfig(name="multitask", tasks=tasks, weights=(1, 1, 1))
    plans = plans_of(images, tasks)
    joined = torch.from_numpy(np.concatenate([plan.labels for plan in plans], axis=1))
    for plan, labels in zip(plans, split_labels(both, joined), strict=True):
        assert (labels.numpy() == plan.labels).all()


@pytest.mark.parametrize("name", ["jigsaw all", "context paper", "rotation all"])
def test_a_view_does_not_depend_on_what_else_is_in_the_batch(images, name):
    task = TASKS[name]
    (plan,) = plans_of(images, [task])
    whole = run(images, [task], [plan], compiled_tiles)
    ids = np.array([7, 2])
    some = [images[n] for n in ids]
    (of_some,) = plans_of(some, [task], ids)
    assert (of_some.labels == plan.labels[ids]).all()
    assert (run(some, [task], [of_some], compiled_tiles) == whole[ids]).all()


def test_a_single_task_is_its_own_only_task():
    assert tasks_of(TASKS["rotation"]) == (TASKS["rotation"],)
