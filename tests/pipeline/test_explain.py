import dataclasses
import io

import numpy as np
import pytest
import torch
from explained import (
    BOTH,
    CONTEXT,
    JIGSAW,
    ORDER,
    PRETEXTS,
    ROTATION,
    TAKE_SPARES,
    bytes_of,
    damage,
    delivered,
    plan_of,
    subject_of,
)
from PIL import Image

from pipeline.config import ConfigError
from pipeline.explain.locate import find_sample
from pipeline.explain.pictures.drawing import seen_tiles
from pipeline.explain.pictures.step import CONTACT_SHEET, panels_of, save_pictures
from pipeline.explain.step import explain_sample, explain_step, open_subject
from pipeline.ingest.config import ShardConfig
from pipeline.loading.data import DataConfig
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.loading.stream import StreamConfig
from pipeline.pretext.multitask import tasks_of
from pipeline.pretext.normalize import split_labels
from pipeline.reference import tile_views
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: pretext.name)
@pytest.mark.parametrize("world_size", [1, 4, 6])  # 4 does not divide the lanes.
def test_what_is_explained_is_what_the_loader_delivers(shards, world_size, pretext):
    subject = subject_of(shards, pretext=pretext)
    for rank in range(world_size):
        rank_info = RankInfo(rank, world_size)
        batch = delivered(subject, 1, 5, rank_info)
        explained = explain_step(subject, 1, 5, rank_info)
        samples = explained.samples
        assert [s.sample_id for s in samples] == batch.sample_ids.tolist()
        parts = split_labels(pretext, torch.from_numpy(batch.labels))
        for number, (task, labels) in enumerate(zip(tasks_of(pretext), parts, strict=True)):
            told = plan_of(task, samples, number).labels
            assert (told == labels.numpy()[:, : told.shape[1]]).all()
        assert (explained.views == batch.views.numpy()).all()
        assert {s.slot.lane % world_size for s in samples} == {rank}


def test_keys_bytes_sizes_and_labels_are_those_of_the_shards(shards):
    explained = explain_step(subject_of(shards), 0, 3, RankInfo(0, 1))
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
        explained = explain_step(subject, 2, 7, RankInfo(rank, world_size))
        sheet = save_pictures(folder, explained, pretext, "Data set")
        assert sheet == folder / CONTACT_SHEET
        samples = explained.samples
        stored = [bytes_of(shards, shown) for shown in samples]
        for number, (task, panel) in enumerate(zip(tasks, panels, strict=True)):
            expected = tile_views(stored, task.tiles, plan_of(task, samples, number))
            for shown, tiles in zip(samples, expected, strict=True):
                with Image.open(folder / f"{shown.slot.position:02}-{shown.key}.png") as drawn:
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
    samples = explain_step(subject_of(shards), 0, 2, RankInfo(0, 1)).samples
    pairs = [
        (shown, one) for shown in samples for puzzle in shown.draws[0].foreign for one in puzzle
    ]
    assert pairs
    for shown, one in pairs:
        assert one.position != shown.slot.position
        assert samples[one.position].slot.lane == shown.slot.lane
        assert 0 <= one.tile < 9


def test_a_pair_is_told_with_the_direction_of_its_patches(shards):
    samples = explain_step(subject_of(shards, pretext=CONTEXT), 0, 2, RankInfo(0, 1)).samples
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
    (row, *_) = explain_step(subject_of(shards, pretext=task), 0, 0, RankInfo(0, 6)).listed()[
        "samples"
    ]
    assert set(row["draws"]) == common | keys
    both = explain_step(subject_of(shards, pretext=BOTH), 0, 0, RankInfo(0, 6)).listed()
    assert both["samples"][0]["draws"][task.name] == row["draws"]


@pytest.mark.parametrize("world_size", [1, 3, 4, 6])
def test_ranks_together_give_the_step(shards, world_size):
    subject = subject_of(shards)
    whole = explain_step(subject, 0, 15, RankInfo(0, 1)).samples
    assert [shown.slot.position for shown in whole] == list(range(12))
    ranks = [explain_step(subject, 0, 15, RankInfo(r, world_size)) for r in range(world_size)]
    parts = [shown for explained in ranks for shown in explained.samples]
    assert sorted(parts, key=lambda shown: shown.slot.position) == list(whole)


def test_every_sample_of_a_mixture_stands_in_its_own_epoch(shards, tmp_path, make_other):
    two = OrderConfig(global_batch=12, num_lanes=2, window=8)
    subject = subject_of(shards, make_other(tmp_path, 26), weights=(2, 1), order=two)
    data = subject.data  # 24 steps of 8 + 4: the small set is in its fifth epoch of 6 steps.
    assert data.steps_per_epoch == 24
    explained = explain_step(subject, 1, 3, RankInfo(0, 1))
    assert [s.slot.position for s in explained.samples] == list(range(12))
    assert [s.slot.set_number for s in explained.samples] == [0] * 8 + [1] * 4
    assert {s.slot.set_epoch for s in explained.samples[8:]} == {27 // 6}
    for shown in explained.samples:
        found = find_sample(data, 1, shown.sample_id)
        assert (3, shown.slot.position, shown.slot.lane) in [
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


@pytest.mark.parametrize("reason", ["hash", "decode"])
def test_a_stand_in_is_shown_with_what_it_stands_in_for(own_shards, vouch, reason):
    bad = damage(own_shards, 70)
    if reason == "decode":
        vouch(own_shards)
    subject = subject_of(own_shards, policy=TAKE_SPARES)
    (place,) = find_sample(subject.data, 0, 70).appearances
    whole = explain_step(subject, 0, place.step, RankInfo(0, 1))
    named = whole.samples[place.position].instead_of
    assert (named.sample_id, named.reason) == (70, reason)
    assert (named.key, named.shard, named.offset) == (bad.key, bad.shard, bad.offset)
    assert sum(shown.instead_of is not None for shown in whole.samples) == 1
    batch = delivered(subject, 0, place.step, RankInfo(0, 1))
    assert [shown.sample_id for shown in whole.samples] == batch.sample_ids.tolist()
    assert (whole.views == batch.views.numpy()).all()
    (step,) = explain_sample(subject, find_sample(subject.data, 0, 70), 0)
    assert step.samples == (whole.samples[place.position],)


def test_damage_stops_where_the_run_stopped(own_shards):
    bad = damage(own_shards, 70)
    subject = subject_of(own_shards)
    (place,) = find_sample(subject.data, 0, 70).appearances
    with pytest.raises(DamageError, match=f"key {bad.key}, offset {bad.offset}"):
        explain_step(subject, 0, place.step, RankInfo(0, 1))


@pytest.mark.parametrize("step", [-1, 16])
def test_a_step_outside_of_the_epoch_is_refused(shards, step):
    with pytest.raises(ConfigError) as caught:
        explain_step(subject_of(shards), 0, step, RankInfo(0, 1))
    assert str(caught.value) == (
        f"step (={step}) must be in 0..15: an epoch has 16 steps of 12 samples."
    )


def test_a_stream_is_refused(shards):
    stream = StreamConfig(url=str(shards / "shard-000000.tar"), samples_per_epoch=60)
    with pytest.raises(ConfigError, match=r"data.stream has no fixed order.* tessera index"):
        open_subject(DataConfig(stream=stream), ORDER, JIGSAW, seed=0)
