import json

import numpy as np
import pytest
import xxhash

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.rotation import RotationConfig
from pipeline.shards.manifest import TOMBSTONES_NAME, read_manifest, read_tombstones
from pipeline.shards.store import Store
from pipeline.upkeep.purge import purge, read_hashes

OPTIONS = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=1)
ROTATION = RotationConfig(name="rotation", crop_px=16)


def quiet(done, total, note):
    assert done <= total


def bury(folder, *hashes):
    return purge(str(folder), list(hashes), on_progress=quiet)


def loader_of(folder, ledger, *, rank=0, world_size=1):
    store = Store(folder)
    order = OrderConfig(global_batch=12, num_lanes=6, window=20)
    data = Mixture([DataSet(store, Order(store.manifest.shard_counts, order, seed=0))])
    policy = DamagePolicy("error", 0.0, ledger)
    return PretextLoader(
        data, ROTATION, seed=0, rank_info=RankInfo(rank, world_size), policy=policy
    )


def ids_of_epoch(loader, batches, epoch):
    ids = []
    for _ in range(loader.steps_per_epoch):
        batch = next(batches)
        assert batch.epoch == epoch
        ids += batch.sample_ids.tolist()
    return ids


def test_a_purged_sample_is_shown_in_no_later_epoch(own_shards, tmp_path):
    ledger = tmp_path / "quarantine.jsonl"
    loader = loader_of(own_shards, ledger)
    batches = loader.batches(OPTIONS)
    seen = ids_of_epoch(loader, batches, 0)
    gone = seen[40:43]
    keys = Store(own_shards).keys()
    done = bury(own_shards, *(keys[n] for n in gone))
    assert [stone.key for stone in done.new] == sorted(keys[n] for n in gone)
    next(batches)  # What was planned ahead of the purge may be out already.
    loader = loader_of(own_shards, ledger)
    batches = loader.batches(OPTIONS)
    for epoch in range(3):
        assert not set(gone) & set(ids_of_epoch(loader, batches, epoch))
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["key"] for row in rows} == {keys[n] for n in gone}
    assert {row["reason"] for row in rows} == {"purged"}
    assert loader.counters.replaced == 0  # Nothing was damaged.


def test_a_running_loader_obeys_from_its_next_epoch_on(own_shards):
    loader = loader_of(own_shards, None)
    batches = loader.batches(OPTIONS)
    first = ids_of_epoch(loader, batches, 0)
    middle = [next(batches).sample_ids.tolist() for _ in range(3)]
    assert middle
    key = Store(own_shards).keys()[first[0]]
    bury(own_shards, key)
    for _ in range(loader.steps_per_epoch - 3):
        next(batches)
    for epoch in (2, 3):
        assert first[0] not in ids_of_epoch(loader, batches, epoch)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_on_what_takes_its_place(own_shards, world_size):
    bury(own_shards, *Store(own_shards).keys()[::9])
    alone = loader_of(own_shards, None)
    whole = sorted(ids_of_epoch(alone, alone.batches(OPTIONS), 0))
    parts = []
    for rank in range(world_size):
        part = loader_of(own_shards, None, rank=rank, world_size=world_size)
        parts += ids_of_epoch(part, part.batches(OPTIONS), 0)
    assert sorted(parts) == whole


def test_hashes_of_file_key_and_stored_image_name_the_same_sample(own_shards):
    store = Store(own_shards)
    read = store.read(np.arange(3))
    stored = xxhash.xxh3_64_hexdigest(read.payloads[0].tobytes())
    key = store.keys()[1]
    content = store.keys()[2] + "0123456789ab"
    done = bury(own_shards, stored, key, content, "f" * 32)
    assert [stone.asked for stone in done.new] == [stored, key, content]
    assert (done.asked, done.known, done.missing) == (4, 0, ("f" * 32,))
    again = bury(own_shards, stored, key)
    assert (again.known, again.new) == (2, ())
    assert len(read_tombstones(str(own_shards))) == 3
    assert sorted(store.purged()) == [0, 1, 2]


def test_a_purged_sample_has_no_label_for_a_transfer(own_shards):
    before = Store(own_shards).labels()
    bury(own_shards, Store(own_shards).keys()[4])
    after = Store(own_shards).labels()
    assert before[4] >= 0
    assert after[4] == -1
    assert (np.delete(after, 4) == np.delete(before, 4)).all()


def test_the_tombstones_hold_no_image_and_no_path(own_shards):
    bury(own_shards, Store(own_shards).keys()[0])
    (line,) = (own_shards / TOMBSTONES_NAME).read_text().splitlines()
    assert set(json.loads(line)) == {"shard", "row", "key", "hash", "asked", "time"}
    assert read_manifest(own_shards).num_samples == 198  # The shards stay unchanged.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abc", "line 1 (=abc) is not a hash"),
        (f"{'0' * 32}\n../x\n", "line 2 (=../x) is not a hash"),
    ],
)
def test_a_list_that_holds_something_else_purges_nothing(tmp_path, text, words):
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_hashes(path)
    assert words in str(caught.value)


def test_a_list_may_have_comments_names_and_repeats(tmp_path):
    path = tmp_path / "list"
    path.write_text(f"# opt-outs\n{'A' * 32}  photo.jpg\n\n{'a' * 32}\n{'b' * 20} # a key\n")
    assert read_hashes(path) == ["a" * 32, "b" * 20]


@pytest.mark.parametrize("line", ["{", '{"shard": 1}', '{"shard": "x.tar", "row": 0}'])
def test_damaged_tombstones_stop_a_run(own_shards, line):
    (own_shards / TOMBSTONES_NAME).write_text(line + "\n")
    with pytest.raises(ConfigError, match="damaged in line 1"):
        next(loader_of(own_shards, None).batches(OPTIONS))


def test_tombstones_of_other_shards_stop_a_run(own_shards):
    bury(own_shards, Store(own_shards).keys()[0])
    path = own_shards / TOMBSTONES_NAME
    path.write_text(path.read_text().replace("shard-000000", "shard-000009"))
    with pytest.raises(ConfigError, match="the manifest beside them does not"):
        next(loader_of(own_shards, None).batches(OPTIONS))
