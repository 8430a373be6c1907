import json
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.quarantine import DamagePolicy, EpochCounts
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.damage import DamageError
from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.


def loader_of(folder, *, rank=0, world_size=1, ledger=None, share=0.5, order=ORDER):
    store = Store(folder)
    data = Mixture([DataSet(store, Order(store.manifest.shard_counts, order, seed=0))])
    policy = DamagePolicy("quarantine", share, ledger)
    return PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(rank, world_size), policy=policy)


def take(loader, num, prefetch=2):
    options = GraphOptions(
        max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=prefetch
    )
    with closing(loader.batches(options)) as batches:
        return list(islice(batches, num))


def ids_of(batches):
    return [batch.sample_ids.tolist() for batch in batches]


def views_of(batches):
    """(epoch, step, sample) to what it looks like."""
    rows = ((b, n) for b in batches for n in range(len(b.sample_ids)))
    return {(b.epoch, b.step, int(b.sample_ids[n])): b.views[n].numpy().tobytes() for b, n in rows}


def damage(folder, sample_ids):
    """Overwrite images with zeros."""
    manifest = read_manifest(folder)
    ends = np.cumsum(manifest.shard_counts)
    for sample_id in sample_ids:
        number = int(np.searchsorted(ends, sample_id, side="right"))
        info = manifest.shards[number]
        index = read_index(folder / info.index, sha256=info.index_sha256)
        row = sample_id - int(ends[number] - info.num_samples)
        with (folder / info.name).open("r+b") as file:
            file.seek(int(index.offsets[row]))
            file.write(bytes(int(index.sizes[row])))


BAD = (3, 70, 71, 72, 150)


@pytest.fixture(params=["hash", "decode"])
def damaged(request, own_shards, vouch):
    """Shards of which BAD cannot be used, and the reason."""
    damage(own_shards, BAD)
    if request.param == "decode":
        vouch(own_shards)
    return own_shards, request.param


@pytest.mark.parametrize("prefetch", [1, 3])
def test_only_the_damaged_samples_are_replaced(shards, damaged, tmp_path, prefetch):
    folder, reason = damaged
    ledger = tmp_path / "quarantine.jsonl"
    clean = take(loader_of(shards), 16)
    loader = loader_of(folder, ledger=ledger)
    got = take(loader, 16, prefetch)
    replaced = 0
    for wanted, batch in zip(ids_of(clean), ids_of(got), strict=True):
        for there, here in zip(wanted, batch, strict=True):
            assert (there != here) == (there in BAD)
            assert here not in BAD
            replaced += there in BAD
    assert replaced == loader.counters.replaced > 0
    # Samples that were not damaged look as they always do.
    expected = views_of(clean)
    assert all(view == expected[key] for key, view in views_of(got).items() if key in expected)
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["sample_id"] for row in rows} <= set(BAD)
    assert len(rows) == len({row["sample_id"] for row in rows}) == replaced
    assert {row["reason"] for row in rows} == {reason}
    assert all(row["shard"].endswith(".tar") and row["key"] and row["offset"] > 0 for row in rows)


@pytest.mark.parametrize("world_size", [2, 4, 6])
def test_every_world_size_takes_the_same_replacements(damaged, world_size):
    folder, _ = damaged
    alone = views_of(take(loader_of(folder), 18))
    parts = {}
    for rank in range(world_size):
        parts |= views_of(take(loader_of(folder, rank=rank, world_size=world_size), 18))
    assert parts == alone


def test_a_resume_takes_the_same_replacements(damaged):
    folder, _ = damaged
    whole = ids_of(take(loader_of(folder), 20))
    first = loader_of(folder)
    begun = ids_of(take(first, 7))
    second = loader_of(folder)  # It has met none of the damage yet.
    second.restore(first.state())
    assert begun + ids_of(take(second, 13)) == whole


def test_a_missing_shard_is_replaced_from_the_others(own_shards):
    (own_shards / "shard-000001.tar").unlink()
    first, second, _ = read_manifest(own_shards).shard_counts
    got = np.array(ids_of(take(loader_of(own_shards), 16)))
    assert not ((got >= first) & (got < first + second)).any()


def test_too_much_damage_stops_the_run_and_tells_the_reasons(damaged):
    folder, reason = damaged
    with pytest.raises(DamageError, match=rf"max_bad_fraction \(=0.01\) allows \({reason} \d"):
        take(loader_of(folder, share=0.01), 16)


def test_a_little_damage_does_not(own_shards):
    damage(own_shards, [70])
    loader = loader_of(own_shards, share=0.01)
    assert len(take(loader, 32)) == 32
    assert loader.counters.replaced == 2  # Once in each epoch.


def test_shards_without_a_whole_sample_end_with_a_line(own_shards):
    damage(own_shards, range(198))
    with pytest.raises(DamageError, match="no whole sample found in 1000 places"):
        take(loader_of(own_shards, share=0.99), 1)


def test_an_epoch_that_lost_a_sample_is_an_error():
    counts = EpochCounts(first_step=3, delivered=90, replaced=5)
    counts.close(0, planned=95)
    with pytest.raises(RuntimeError, match=r"replaced \(=5\) \+ purged \(=0\) must equal"):
        counts.close(0, planned=96)
