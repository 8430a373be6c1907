"""What tests of `explain` share: pretexts, an order, subjects, and what a list spells out."""

from contextlib import closing

import numpy as np

from pipeline.dali.graph import GraphOptions
from pipeline.explain.locate import find_sample
from pipeline.explain.step import Subject, explain_sample
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, orders
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import STOP_AT_DAMAGE, DamagePolicy
from pipeline.pretext.context import ContextConfig, ContextDraws
from pipeline.pretext.jigsaw import JigsawConfig, JigsawDraws
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.plan import COLORS, TilePlan
from pipeline.pretext.rotation import RotationConfig, RotationDraws
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(
    name="jigsaw",
    crop_px=36,
    tile_px=9,
    channel_shift_px=1,
    intensity_jitter=9,
    max_foreign_tiles=1,
    num_permutations=20,
    puzzles_per_image=2,
)
CONTEXT = ContextConfig(
    name="context",
    patch_px=12,
    gap_px=6,
    jitter_px=2,
    min_pixels=2000,
    max_pixels=4000,
    pairs_per_image=3,
)
ROTATION = RotationConfig(name="rotation", crop_px=24, gray_probability=0.5)
BOTH = MultitaskConfig(name="multitask", tasks=(CONTEXT, ROTATION, JIGSAW), weights=(1, 2, 1))
PRETEXTS = [JIGSAW, CONTEXT, ROTATION, BOTH]
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.
TAKE_SPARES = DamagePolicy("quarantine", 0.5, None)


def subject_of(*folders, weights=(1, 1), order=ORDER, policy=STOP_AT_DAMAGE, pretext=JIGSAW):
    stores = [Store(folder) for folder in folders]
    counts = [store.manifest.shard_counts for store in stores]
    made = orders(counts, weights[: len(stores)], order, seed=0)
    data = Mixture([DataSet(s, o) for s, o in zip(stores, made, strict=True)])
    return Subject(data, pretext, 0, policy, threads=1, cache=None)


def delivered(subject, epoch, step, rank_info):
    """The batch of a loader that goes on at a step."""
    data, policy = subject.data, subject.policy
    loader = PretextLoader(data, subject.pretext, seed=0, rank_info=rank_info, policy=policy)
    loader.restore({**loader.state(), "epoch": epoch, "step": step})
    options = GraphOptions(max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=2)
    with closing(loader.batches(options)) as batches:
        return next(batches)


def plan_of(task, samples, number=0):
    """The plan that the list of a step spells out for one of its tasks."""
    draws = [s.draws[number] for s in samples]
    first, size = draws[0], (len(draws), task.num_tiles)
    shifts = [d.shifts for d in draws] if first.shifts else np.zeros((*size, 3, 2))
    added = [d.intensity for d in draws] if first.intensity else np.zeros((*size, 3))
    noise = [d.noise for d in draws] if first.noise else np.zeros((*size, 2))
    sides = [d.sides for d in draws] if first.sides else np.full(size, task.tiles.tile_px)
    return TilePlan(
        crops=np.array([(*d.crop, d.crop[2]) for d in draws], np.int32),
        anchors=np.array([task.cells + np.array(d.tiles) for d in draws], np.int32),
        labels=np.array([asked(d) for d in draws]),
        shifts=np.array(shifts, np.int32),
        sides=np.array(sides, np.int32),
        colors=np.array([[COLORS.index(color) for color in d.colors] for d in draws], np.int32),
        offsets=np.array(added, np.int32),
        noise=np.array(noise, np.int32),
        mirrored=np.array([bool(d.mirrored) for d in draws], np.int32),
    )


def asked(draws):
    """The labels that draws spell out."""
    match draws:
        case JigsawDraws():
            return draws.permutations
        case ContextDraws():
            return draws.labels
        case RotationDraws():
            return [turn // 90 for turn in draws.turns]


def bytes_of(folder, shown):
    """The image, read from its shard as the list of a step says."""
    with (folder / shown.shard).open("rb") as file:
        file.seek(shown.offset)
        return file.read(shown.num_bytes)


def damage(folder, sample_id):
    """Overwrite an image with zeros."""
    shown = explain_sample_of(folder, sample_id)
    with (folder / shown.shard).open("r+b") as file:
        file.seek(shown.offset)
        file.write(bytes(shown.num_bytes))
    return shown


def explain_sample_of(folder, sample_id, epoch=0):
    subject = subject_of(folder)
    (step,) = explain_sample(subject, find_sample(subject.data, epoch, sample_id), epoch)
    return step.samples[0]
