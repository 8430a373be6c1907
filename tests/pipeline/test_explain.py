import dataclasses
import io
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError
from pipeline.crawl.config import ShardConfig
from pipeline.dali.graph import GraphOptions
from pipeline.data import DataConfig
from pipeline.drawn import ContextDraws, JigsawDraws, RotationDraws, cells_of
from pipeline.explain import Subject, explain_sample, explain_step, open_subject
from pipeline.loader import PretextLoader
from pipeline.mixture import DataSet, Mixture, Place, orders
from pipeline.order import Order, OrderConfig
from pipeline.pictures.sample import panels_of
from pipeline.pictures.sheets import seen_tiles
from pipeline.pictures.step import CONTACT_SHEET, save_pictures
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import MultitaskConfig, tasks_of
from pipeline.pretext.plan import COLORS, TilePlan
from pipeline.pretext.rotation import RotationConfig
from pipeline.quarantine import STOP_AT_DAMAGE, DamagePolicy
from pipeline.reference import tile_views
from pipeline.seen import split_labels
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from pipeline.stream import StreamConfig
from pipeline.whereabouts import find_sample, place_of, sample_id_of

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


def delivered(subject, epoch, step, place):
    """The batch of a loader that goes on at a step."""
    data, policy = subject.data, subject.policy
    loader = PretextLoader(data, subject.pretext, seed=0, place=place, policy=policy)
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
        anchors=np.array([cells_of(task) + np.array(d.tiles) for d in draws], np.int32),
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


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: pretext.name)
@pytest.mark.parametrize("world_size", [1, 4, 6])  # 4 does not divide the lanes.
def test_what_is_explained_is_what_the_loader_delivers(shards, world_size, pretext):
    subject = subject_of(shards, pretext=pretext)
    for rank in range(world_size):
        place = Place(rank, world_size)
        batch = delivered(subject, 1, 5, place)
        explained = explain_step(subject, 1, 5, place)
        samples = explained.samples
        assert [s.sample_id for s in samples] == batch.sample_ids.tolist()
        parts = split_labels(pretext, torch.from_numpy(batch.labels))
        for number, (task, labels) in enumerate(zip(tasks_of(pretext), parts, strict=True)):
            told = plan_of(task, samples, number).labels
            assert (told == labels.numpy()[:, : told.shape[1]]).all()
        assert (explained.views == batch.views.numpy()).all()
        assert {s.seat.lane % world_size for s in samples} == {rank}


def test_keys_bytes_sizes_and_labels_are_those_of_the_shards(shards):
    explained = explain_step(subject_of(shards), 0, 3, Place(0, 1))
    keys, classes = Store(shards).keys(), read_manifest(shards).classes
    labels = Store(shards).labels()
    for shown, payload in zip(explained.samples, explained.payloads, strict=True):
        assert shown.key == keys[shown.sample_id]
        assert shown.label == classes[labels[shown.sample_id]]
        assert bytes_of(shards, shown) == payload.tobytes()
        with Image.open(io.BytesIO(payload.tobytes())) as image:
            assert image.size == (shown.width, shown.height)


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: pretext.name)
@pytest.mark.parametrize("world_size", [1, 2])
def test_saved_tiles_are_what_the_list_says(shards, tmp_path, world_size, pretext):
    subject = subject_of(shards, pretext=pretext)
    tasks, panels = tasks_of(pretext), panels_of(pretext)
    for rank in range(world_size):
        folder = tmp_path / str(rank)
        folder.mkdir()
        explained = explain_step(subject, 2, 7, Place(rank, world_size))
        sheet = save_pictures(folder, explained, pretext, "Data set")
        assert sheet == folder / CONTACT_SHEET
        samples = explained.samples
        stored = [bytes_of(shards, shown) for shown in samples]
        for number, (task, panel) in enumerate(zip(tasks, panels, strict=True)):
            expected = tile_views(stored, task.tiles, plan_of(task, samples, number))
            for shown, tiles in zip(samples, expected, strict=True):
                with Image.open(folder / f"{shown.seat.position:02}-{shown.key}.png") as drawn:
                    page = np.asarray(drawn).astype(int)
                assert_drawn(page, panel, seen_tiles(task, tiles))
        assert len(list(folder.iterdir())) == len(samples) + 1


def assert_drawn(page, panel, tiles):
    """Every tile stands at its place on the page, enlarged."""
    scale, large = panel.tiles.scale, panel.tiles.scale * panel.tiles.tile_px
    for (left, top), tile in zip(panel.tiles.places, tiles, strict=True):
        x, y = panel.left + left, panel.top + top
        seen = page[y : y + large, x : x + large]
        small = seen[::scale, ::scale]
        assert (small.repeat(scale, 0).repeat(scale, 1) == seen).all()
        assert np.abs(small - tile).max() <= 4  # Two decoders, and a second resize of patches.


def test_foreign_tiles_are_named_by_the_position_they_come_from(shards):
    samples = explain_step(subject_of(shards), 0, 2, Place(0, 1)).samples
    pairs = [
        (shown, one) for shown in samples for puzzle in shown.draws[0].foreign for one in puzzle
    ]
    assert pairs
    for shown, one in pairs:
        assert one.position != shown.seat.position
        assert samples[one.position].seat.lane == shown.seat.lane
        assert 0 <= one.tile < 9


def test_a_pair_is_told_with_the_direction_of_its_patches(shards):
    samples = explain_step(subject_of(shards, pretext=CONTEXT), 0, 2, Place(0, 1)).samples
    for pair in (pair for shown in samples for pair in shown.draws[0].pairs):
        (down, right) = np.subtract(divmod(pair.second, 2), divmod(pair.first, 2))
        assert pair.direction == ("N", "", "S")[down + 1] + ("W", "", "E")[right + 1]


@pytest.mark.parametrize(("task", "keys"), [
    (JIGSAW, {"shifts", "intensity", "permutations", "foreign"}),
    (CONTEXT, {"sides", "noise", "pairs", "labels"}),
    (ROTATION, {"mirrored", "turns"}),
])  # fmt: skip
def test_json_tells_only_what_a_config_leaves_open(shards, task, keys):
    common = {"crop", "tiles", "gray", "colors"}
    (row, *_) = explain_step(subject_of(shards, pretext=task), 0, 0, Place(0, 6)).listed()[
        "samples"
    ]
    assert set(row["draws"]) == common | keys
    both = explain_step(subject_of(shards, pretext=BOTH), 0, 0, Place(0, 6)).listed()
    assert both["samples"][0]["draws"][task.name] == row["draws"]


@pytest.mark.parametrize("world_size", [1, 3, 4, 6])
def test_ranks_together_give_the_step(shards, world_size):
    subject = subject_of(shards)
    whole = explain_step(subject, 0, 15, Place(0, 1)).samples
    assert [shown.seat.position for shown in whole] == list(range(12))
    ranks = [explain_step(subject, 0, 15, Place(r, world_size)) for r in range(world_size)]
    parts = [shown for explained in ranks for shown in explained.samples]
    assert sorted(parts, key=lambda shown: shown.seat.position) == list(whole)


def test_every_sample_of_a_mixture_stands_in_its_own_epoch(shards, tmp_path, make_other):
    two = OrderConfig(global_batch=12, num_lanes=2, window=8)
    subject = subject_of(shards, make_other(tmp_path, 26), weights=(2, 1), order=two)
    data = subject.data  # 24 steps of 8 + 4: the small set is in its fifth epoch of 6 steps.
    assert data.steps_per_epoch == 24
    explained = explain_step(subject, 1, 3, Place(0, 1))
    assert [s.seat.position for s in explained.samples] == list(range(12))
    assert [s.seat.set_number for s in explained.samples] == [0] * 8 + [1] * 4
    assert {s.seat.set_epoch for s in explained.samples[8:]} == {27 // 6}
    for shown in explained.samples:
        found = find_sample(data, 1, shown.sample_id)
        assert (3, shown.seat.position, shown.seat.lane) in [
            dataclasses.astuple(a) for a in found.appearances
        ]
        steps = explain_sample(subject, found, 1)
        assert shown in [step.samples[0] for step in steps]


@pytest.fixture
def make_other(make_shards):
    """A function (folder, num) that makes shards of noise without labels."""

    def make(folder, num):
        (folder / "noise").mkdir()
        for number in range(num):
            noise = np.random.default_rng(number).integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "noise" / f"{number}.jpg")
        make_shards(folder / "noise", folder / "other", ShardConfig())
        return folder / "other"

    return make


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    lanes=st.integers(1, 5),
    share=st.integers(1, 4),
    window=st.integers(1, 30),
    epoch=st.integers(0, 3),
)
def test_the_place_of_a_sample_is_the_inverse_of_the_order(counts, lanes, share, window, epoch):
    config = OrderConfig(global_batch=lanes * share, num_lanes=lanes, window=window)
    order = Order(np.array([*counts, lanes * share]), config, seed=9)
    steps = range(order.steps_per_epoch)
    batches = [order.global_batch(epoch, step).tolist() for step in steps]
    expected = {i: (step, slot) for step in steps for slot, i in enumerate(batches[step])}
    got = {i: place_of(order, epoch, i) for i in range(order.num_samples)}
    assert {i: place for i, place in got.items() if place} == expected
    assert sum(place is None for place in got.values()) == order.remainder


def test_a_sample_among_a_million_is_found():
    config = OrderConfig(global_batch=512, num_lanes=64, window=4096)
    order = Order(np.full(1000, 1000), config, seed=1)
    sample_id = int(order.global_batch(5, 1900)[500])
    assert place_of(order, 5, sample_id) == (1900, 500)


def test_a_sample_of_the_remainder_comes_at_no_step(shards):
    subject = subject_of(shards)
    ids = {int(i) for step in range(16) for i in subject.data.sets[0].order.global_batch(0, step)}
    (first, *_) = set(range(198)) - ids
    found = find_sample(subject.data, 0, first)
    assert (found.appearances, found.left_over) == ((), True)
    assert explain_sample(subject, found, 0) == []


@pytest.mark.parametrize("reason", ["hash", "decode"])
def test_a_stand_in_is_shown_with_what_it_stands_in_for(own_shards, vouch, reason):
    bad = damage(own_shards, 70)
    if reason == "decode":
        vouch(own_shards)
    subject = subject_of(own_shards, policy=TAKE_SPARES)
    (place,) = find_sample(subject.data, 0, 70).appearances
    whole = explain_step(subject, 0, place.step, Place(0, 1))
    named = whole.samples[place.position].instead_of
    assert (named.sample_id, named.reason) == (70, reason)
    assert (named.key, named.shard, named.offset) == (bad.key, bad.shard, bad.offset)
    assert sum(shown.instead_of is not None for shown in whole.samples) == 1
    batch = delivered(subject, 0, place.step, Place(0, 1))
    assert [shown.sample_id for shown in whole.samples] == batch.sample_ids.tolist()
    assert (whole.views == batch.views.numpy()).all()
    (step,) = explain_sample(subject, find_sample(subject.data, 0, 70), 0)
    assert step.samples == (whole.samples[place.position],)


def test_damage_stops_where_the_run_stopped(own_shards):
    bad = damage(own_shards, 70)
    subject = subject_of(own_shards)
    (place,) = find_sample(subject.data, 0, 70).appearances
    with pytest.raises(DamageError, match=f"key {bad.key}, offset {bad.offset}"):
        explain_step(subject, 0, place.step, Place(0, 1))


def test_ids_and_keys_name_samples(shards):
    data = subject_of(shards).data
    keys = Store(shards).keys()
    assert sample_id_of(data, "5") == 5
    assert sample_id_of(data, keys[5]) == sample_id_of(data, f"key:{keys[5]}") == 5
    for unknown in ("198", "-1", "05", "key:5", "", "9" * 5000):
        with pytest.raises(ConfigError, match=r"is neither an id in 0..197 nor the key"):
            sample_id_of(data, unknown)


def test_a_key_of_two_samples_is_refused(shards):
    data = subject_of(shards, shards, order=OrderConfig(global_batch=4, num_lanes=2, window=8)).data
    key = Store(shards).keys()[5]
    with pytest.raises(ConfigError, match=r"is the key of 2 samples; .* ids: 5, 203\."):
        sample_id_of(data, key)


@pytest.mark.parametrize("step", [-1, 16])
def test_a_step_outside_of_the_epoch_is_refused(shards, step):
    with pytest.raises(ConfigError) as caught:
        explain_step(subject_of(shards), 0, step, Place(0, 1))
    assert str(caught.value) == (
        f"step (={step}) must be in 0..15: an epoch has 16 steps of 12 samples."
    )


def test_a_stream_is_refused(shards):
    stream = StreamConfig(url=str(shards / "shard-000000.tar"), samples_per_epoch=60)
    with pytest.raises(ConfigError, match=r"data.stream has no fixed order.* tessera index"):
        open_subject(DataConfig(stream=stream), ORDER, JIGSAW, seed=0)


def test_a_key_that_is_a_path_names_one_file(shards, tmp_path):
    explained = explain_step(subject_of(shards), 0, 0, Place(0, 6))
    first, second = explained.samples
    samples = (dataclasses.replace(first, key="../a b/c"), second)
    save_pictures(tmp_path, dataclasses.replace(explained, samples=samples), JIGSAW, "Data set")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"00-.._a_b_c.png", f"01-{second.key}.png", CONTACT_SHEET}
