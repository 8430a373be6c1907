import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.shards.manifest import Ledger, Manifest, ShardInfo, read_manifest, write_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import run_here
from pipeline.upkeep.combine import _assign, merge, split
from pipeline.upkeep.purge import purge
from pipeline.upkeep.verify import verify


def quiet(done, total, note):
    assert done <= total


def images(location):
    """Key of every sample to its bytes and the name of its class."""
    store = Store(location)
    read = store.read(np.arange(store.manifest.num_samples))
    assert not read.damaged
    names = (*(store.manifest.classes or ()), None)
    rows = zip(store.keys(), read.payloads, store.labels().tolist(), strict=True)
    return {key: (payload.tobytes(), names[label]) for key, payload, label in rows}


@pytest.fixture
def parts(shards, tmp_path):
    out = tmp_path / "parts"
    split(str(shards), out, {"train": 0.6, "val": 0.4}, seed=0, on_progress=quiet)
    return out


def test_parts_share_nothing_and_lose_nothing(shards, parts):
    train, val = images(parts / "train"), images(parts / "val")
    assert not train.keys() & val.keys()
    assert {**train, **val} == images(shards)
    assert len(train) > len(val)
    for part in ("train", "val"):
        assert verify(str(parts / part), run_here, deep=False, on_progress=quiet).ok


def test_what_was_split_can_be_merged(shards, parts, tmp_path):
    done = merge([str(parts / "train"), str(parts / "val")], tmp_path / "all", on_progress=quiet)
    assert images(tmp_path / "all") == images(shards)
    assert done.repeated == 0
    assert done.manifest.classes == read_manifest(shards).classes


def test_labels_count_through_the_classes_of_all_sets(shards, own_shards, tmp_path):
    raw = json.loads((own_shards / "manifest.json").read_text())
    raw.pop("fingerprint")
    raw["classes"] = ["aa", "disc", "ring", "zz"]  # "bar" and "wedge" under other names.
    write_manifest(own_shards, Manifest.model_validate(raw))
    done = merge([str(shards), str(own_shards)], tmp_path / "all", on_progress=quiet)
    assert done.manifest.classes == ("aa", "bar", "disc", "ring", "wedge", "zz")
    assert done.manifest.ledger.inputs == 2 * 198
    assert done.repeated == 2 * 198
    store = Store(tmp_path / "all")
    names = [done.manifest.classes[label] for label in store.labels()]
    ours, theirs = names[:198], names[198:]
    assert [{"bar": "aa", "wedge": "zz"}.get(name, name) for name in ours] == theirs


def test_tombstones_go_along(own_shards, tmp_path):
    key = Store(own_shards).keys()[100]
    purge(str(own_shards), [key], on_progress=quiet)
    split(str(own_shards), tmp_path / "p", {"a": 0.5, "b": 0.5}, seed=1, on_progress=quiet)
    merge([str(tmp_path / "p" / name) for name in "ab"], tmp_path / "all", on_progress=quiet)
    store = Store(tmp_path / "all")
    assert [store.keys()[n] for n in store.purged()] == [key]


def test_a_set_given_twice_is_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="listed in two manifests"):
        merge([str(shards), str(shards)], tmp_path / "all", on_progress=quiet)


def test_more_parts_than_shards_are_refused(shards, tmp_path):
    shares = {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}
    with pytest.raises(ConfigError, match="would get none of 3 shards"):
        split(str(shards), tmp_path / "p", shares, seed=0, on_progress=quiet)
    assert not (tmp_path / "p").exists()


def test_out_must_be_empty(shards, tmp_path):
    shutil.copy(shards / "manifest.json", tmp_path)
    with pytest.raises(ConfigError, match="is not an empty folder"):
        merge([str(shards)], tmp_path, on_progress=quiet)


@given(
    counts=st.lists(st.integers(1, 1000), min_size=12, max_size=40),
    share=st.floats(0.3, 0.7),
    seed=st.integers(0, 5),
)
def test_parts_have_their_shares_to_a_shard(counts, share, seed):
    made = Manifest(
        version=2,
        shards=tuple(
            ShardInfo(
                name=f"{n}.tar",
                index=f"{n}.parquet",
                num_samples=count,
                num_bytes=1,
                sha256=f"{n:064x}",
                index_sha256="",
            )
            for n, count in enumerate(counts)
        ),
        classes=None,
        ledger=Ledger(
            inputs=sum(counts), accepted=sum(counts), quarantined={}, filtered={}, duplicate=0
        ),
        config={},
    )
    try:
        parts = _assign(made, {"a": share, "b": 1 - share}, seed)
    except ConfigError:  # One shard may outweigh all others.
        assert max(counts) > 0.3 * sum(counts)
        return
    assert sorted([*parts["a"], *parts["b"]]) == list(range(len(counts)))
    held = sum(counts[n] for n in parts["a"])
    assert abs(held - share * sum(counts)) <= max(counts) / 2 + 1
