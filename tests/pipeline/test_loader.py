import dataclasses
import hashlib
import json
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import central_squares, whole_batches
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.reference import crop_view, tile_views
from pipeline.shards.damage import DamageError
from pipeline.shards.index import encode_index, hash_spans, read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(
    name="jigsaw", crop_px=33, tile_px=9, num_permutations=20, puzzles_per_image=2
)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.


@pytest.fixture(scope="module")
def store(shards):
    return Store(shards)


def loader_of(store, *, rank=0, world_size=1, seed=0, config=ORDER):
    order = Order(store.manifest.shard_counts, config, seed=seed)
    data = Mixture([DataSet(store, order)])
    return PretextLoader(data, JIGSAW, seed=seed, rank_info=RankInfo(rank, world_size))


def options(max_batch, *, prefetch=2, num_threads=1):
    return GraphOptions(
        max_batch=max_batch, num_threads=num_threads, device_id=None, prefetch=prefetch
    )


def take(loader, num, **changes):
    with closing(loader.batches(options(loader.max_batch, **changes))) as batches:
        return list(islice(batches, num))


def by_sample(batches):
    """What every sample of every step looked like, whatever batch it came in."""
    return {
        (batch.epoch, batch.step, int(sample_id)): (view.tobytes(), tuple(labels))
        for batch in batches
        for sample_id, view, labels in zip(
            batch.sample_ids, batch.views.numpy(), batch.labels, strict=True
        )
    }


def test_a_batch_is_the_planned_views_of_the_ordered_samples(store):
    batches = take(loader_of(store), 3)
    order = Order(store.manifest.shard_counts, ORDER, seed=0)
    for step, batch in enumerate(batches):
        assert (batch.epoch, batch.step) == (0, step)
        assert (batch.sample_ids == order.global_batch(0, step)).all()
        samples = store.read(batch.sample_ids)
        draws = Draws(0, 0, batch.sample_ids)
        plan = plan_jigsaw(JIGSAW, samples.heights, samples.widths, draws)
        assert (batch.labels == plan.labels).all()
        expected = tile_views([p.tobytes() for p in samples.payloads], JIGSAW.tiles, plan)
        assert batch.views.shape == (12, 9, 9, 9, 3)
        assert np.abs(batch.views.numpy().astype(int) - expected).max() <= 2


def test_epochs_follow_each_other_with_new_views_of_the_same_samples(store):
    seen = by_sample(take(loader_of(store), 40))
    assert {(epoch, step) for epoch, step, _ in seen} == {(n // 16, n % 16) for n in range(40)}
    first = {i: view for (epoch, _, i), view in seen.items() if epoch == 0}
    second = {i: view for (epoch, _, i), view in seen.items() if epoch == 1}
    both = first.keys() & second.keys()
    assert len(both) > 180
    assert all(first[i] != second[i] for i in both)


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (2, {}),
        (4, {}),  # Does not divide the 6 lanes: batches of 4 and of 2.
        (6, {"prefetch": 1}),
        (1, {"prefetch": 4, "num_threads": 2}),
    ],
)
def test_a_sample_looks_the_same_on_any_number_of_ranks(store, world_size, changes):
    alone = by_sample(take(loader_of(store), 18))
    parts = [
        by_sample(take(loader_of(store, rank=rank, world_size=world_size), 18, **changes))
        for rank in range(world_size)
    ]
    assert sum(map(len, parts)) == len(alone)
    assert {key: view for part in parts for key, view in part.items()} == alone


def test_a_sample_looks_the_same_in_a_batch_of_another_size(store):
    wide = OrderConfig(global_batch=198, num_lanes=1, window=64)
    large = by_sample(take(loader_of(store, config=wide), 1))
    views = {sample_id: view for (_, _, sample_id), view in large.items()}
    for (_, _, sample_id), view in by_sample(take(loader_of(store), 3)).items():
        assert views[sample_id] == view


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (3, 2)])
def test_a_run_goes_on_bit_for_bit_at_another_world_size(store, before, after):
    whole = by_sample(take(loader_of(store), 24))
    first, state = {}, None
    for rank in range(before):
        loader = loader_of(store, rank=rank, world_size=before)
        first |= by_sample(take(loader, 13))
        assert state in (None, loader.state())  # Every rank leaves the same.
        state = json.loads(json.dumps(loader.state()))
    rest = {}
    for rank in range(after):
        loader = loader_of(store, rank=rank, world_size=after)
        loader.restore(state)
        rest |= by_sample(take(loader, 11))
    assert not first.keys() & rest.keys()
    assert first | rest == whole


@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_state_is_behind_the_last_batch_taken_not_computed(store, prefetch):
    loader = loader_of(store)
    states = [loader.state()]
    with closing(loader.batches(options(12, prefetch=prefetch))) as batches:
        for _ in islice(batches, 17):
            states.append(loader.state())
    positions = [(state["epoch"], state["step"]) for state in states]
    assert positions == [(n // 16, n % 16) for n in range(18)]


def test_batches_start_where_the_last_ones_were_left(store):
    loader = loader_of(store)
    parts = by_sample([*take(loader, 5), *take(loader, 2)])
    assert parts == by_sample(take(loader_of(store), 7))


def test_the_state_is_small_however_long_the_run(store):
    config = OrderConfig(global_batch=12, num_lanes=6, window=2**31)
    loader = loader_of(store, seed=2**63, config=config)
    loader.restore({**loader.state(), "epoch": 10**6, "step": 10**9})
    assert len(json.dumps({**loader.state(), "global_batch": 65_536, "num_lanes": 65_536})) < 256


@pytest.mark.parametrize(
    ("key", "theirs"),
    [
        ("fingerprint", "0123456789abcdef"),
        ("seed", 1),
        ("global_batch", 24),
        ("num_lanes", 3),
        ("window", 21),
    ],
)
def test_a_position_in_another_order_is_refused(store, key, theirs):
    loader = loader_of(store)
    state = loader.state()
    with pytest.raises(ConfigError) as caught:
        loader.restore({**state, key: theirs, "step": 5})
    assert str(caught.value) == (
        f"{key} (={state[key]}) differs from the checkpoint's (={theirs}): the order of samples "
        "would change in the middle of a run. Start a new run."
    )
    assert loader.state() == state


def test_more_ranks_than_lanes_are_refused_before_anything_is_read(store):
    with pytest.raises(ConfigError, match=r"world_size \(=7\) exceeds num_lanes \(=6\)"):
        loader_of(store, world_size=7)


@pytest.mark.parametrize(
    ("num", "max_batch"),
    [
        (20, 8),  # The last batch is short.
        (16, 8),
        (3, 8),
        (1, 1),
        (0, 8),
    ],
)
def test_whole_views_come_once_each_in_the_order_given(store, num, max_batch):
    ids = np.random.default_rng(0).permutation(198)[:num]
    batches = list(whole_batches(store, ids, options(max_batch), px=48))
    assert [len(batch.sample_ids) for batch in batches] == [
        min(max_batch, num - start) for start in range(0, num, max_batch)
    ]
    samples = store.read(ids)
    crops = central_squares(samples.heights, samples.widths)
    pairs = zip(samples.payloads, crops, strict=True)
    expected = [crop_view(payload.tobytes(), crop, 48).astype(int) for payload, crop in pairs]
    got = [view for batch in batches for view in batch.views.numpy()]
    assert [i for batch in batches for i in batch.sample_ids] == ids.tolist()
    assert [k for batch in batches for k in batch.labels] == samples.labels.tolist()
    assert len(got) == num
    assert all(np.abs(a - b).max() <= 2 for a, b in zip(got, expected, strict=True))


def test_central_squares_are_central():
    crops = central_squares(np.array([10, 7, 5]), np.array([4, 8, 5]))
    assert crops.tolist() == [[3, 0, 4, 4], [0, 0, 7, 7], [0, 0, 5, 5]]


def break_sample(folder, sample_id, *, rehash):
    """Overwrite the middle of a payload; with `rehash`, its index vouches for the broken bytes."""
    manifest = read_manifest(folder)
    ends = np.cumsum(manifest.shard_counts)
    number = int(np.searchsorted(ends, sample_id, side="right"))
    info = manifest.shards[number]
    row = sample_id - int(ends[number] - info.num_samples)
    index = read_index(folder / info.index, sha256=info.index_sha256)
    tar = bytearray((folder / info.name).read_bytes())
    payload = np.s_[index.offsets[row] : index.offsets[row] + index.sizes[row]]
    tar[payload] = bytes(int(index.sizes[row]))
    (folder / info.name).write_bytes(tar)
    if rehash:
        spans = hash_spans(memoryview(tar), index.starts)
        encoded = encode_index(dataclasses.replace(index, span_hashes=spans))
        (folder / info.index).write_bytes(encoded)
        raw = json.loads((folder / "manifest.json").read_text())
        raw["shards"][number]["index_sha256"] = hashlib.sha256(encoded).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(raw))
    return f"shard {info.name}, key {index.keys[row]}, offset {index.offsets[row]}"


@pytest.mark.parametrize("prefetch", [1, 2, 3])
@pytest.mark.parametrize(
    ("rehash", "reason"),
    [
        (True, "the image does not decode, though its bytes are those that were written."),
        (False, "the bytes do not match their hash; the shard was damaged"),
    ],
)
@pytest.mark.parametrize("step", [0, 5])
def test_a_broken_image_is_named(own_shards, prefetch, rehash, reason, step):
    order = Order(read_manifest(own_shards).shard_counts, ORDER, seed=0)
    name = break_sample(own_shards, int(order.global_batch(0, step)[7]), rehash=rehash)
    batches = loader_of(Store(own_shards)).batches(options(12, prefetch=prefetch))
    # Every whole batch before it is delivered.
    assert [batch.step for batch in islice(batches, step)] == list(range(step))
    with pytest.raises(DamageError) as caught:
        next(batches)
    assert str(caught.value).startswith(f"{name}: {reason}")


def test_a_broken_image_of_an_evaluation_is_named(own_shards):
    name = break_sample(own_shards, 100, rehash=True)
    with pytest.raises(DamageError) as caught:
        list(whole_batches(Store(own_shards), np.arange(198), options(16), px=32))
    assert str(caught.value).startswith(f"{name}: the image does not decode")
