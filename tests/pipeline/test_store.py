import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.dali.decode import decode_rgb
from pipeline.shards import store as store_module
from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store


@pytest.fixture(scope="module")
def scratch(shards, tmp_path_factory):
    """A copy that a test damages and mends again, for every example."""
    return shutil.copytree(shards, tmp_path_factory.mktemp("scratch") / "shards")


@pytest.fixture(scope="module")
def indexes(shards):
    manifest = read_manifest(shards)
    return [read_index(shards / s.index, sha256=s.index_sha256) for s in manifest.shards]


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_samples_come_in_the_order_asked_for(shards, indexes):
    store = Store(shards)
    ids = np.array([197, 0, 70, 0, 131])  # Across shards, one of them twice.
    samples = store.read(ids)
    keys = store.keys()
    assert keys == [key for index in indexes for key in index.keys]
    for sample_id, payload, height, width in zip(
        ids, samples.payloads, samples.heights, samples.widths, strict=True
    ):
        assert decode_rgb(payload.tobytes()).shape == (height, width, 3)
        assert f"key {keys[sample_id]}," in str(store.damage(int(sample_id), "decode", "x"))
    assert bytes(samples.payloads[1]) == bytes(samples.payloads[3])
    assert (samples.labels == store.labels()[ids]).all()
    assert set(store.labels().tolist()) == {0, 1, 2, 3}


def test_payloads_are_the_very_bytes_that_were_hashed(own_shards):
    (payload,) = Store(own_shards).read(np.array([5])).payloads
    before = payload.tobytes()
    for tar in own_shards.glob("*.tar"):  # In place: a mapping would show it.
        with tar.open("r+b") as file:
            file.write(bytes(tar.stat().st_size))
    assert payload.tobytes() == before
    assert not payload.flags.writeable


def test_payloads_outlive_the_mapping_that_the_store_drops(shards, monkeypatch):
    ids = np.arange(0, 198, 9)
    expected = [bytes(payload) for payload in Store(shards).read(ids).payloads]
    monkeypatch.setattr(store_module, "_MIN_OPEN", 1)
    store = Store(shards)
    views = [store.read(ids[i : i + 1]).payloads[0] for i in range(len(ids))]
    store.read(np.array([0]))
    assert [bytes(view) for view in views] == expected


@settings(max_examples=60, deadline=None)
@given(
    sample_id=st.integers(0, 197), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_one_flipped_bit_anywhere_in_a_shard_is_found(scratch, indexes, sample_id, place, bit):
    store = Store(scratch)
    shards = np.repeat(np.arange(3), [len(index) for index in indexes])
    shard, row = int(shards[sample_id]), int(np.sum(shards[:sample_id] == shards[sample_id]))
    index, name = indexes[shard], store.manifest.shards[shard].name
    start, offset = int(index.starts[row]), int(index.offsets[row])
    ends = [*index.starts.tolist(), store.manifest.shards[shard].num_bytes]
    target = start + int(place * (ends[row + 1] - start))  # Headers, padding, end mark, payload.
    flip(scratch / name, target, bit)
    try:
        # It is found, named, and no other sample is blamed.
        damaged = store.read(np.arange(198)).damaged
    finally:
        flip(scratch / name, target, bit)
    assert list(damaged) == [sample_id]
    assert damaged[sample_id].reason == "hash"
    assert str(damaged[sample_id]) == (
        f"shard {name}, key {index.keys[row]}, offset {offset}: the bytes do not match their hash; "
        "the shard was damaged after it was written. Restore it or shard again."
    )


def flip(path, place, bit):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def cut(folder):
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 512)


def swap_indexes(folder):
    a, b = folder / "shard-000000.parquet", folder / "shard-000001.parquet"
    a.rename(folder / "other")
    b.rename(a)
    (folder / "other").rename(b)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"shard \(=.*shard-000001.tar\) has \d+ bytes, its manifest says \d+: it was cut"),
        (
            lambda folder: (folder / "shard-000002.tar").unlink(),
            r"shard \(=.*shard-000002.tar\) cannot be read: No such file",
        ),
        (
            swap_indexes,
            r"index \(=.*shard-000000.parquet\) does not match the hash in its manifest",
        ),
        (
            lambda folder: (folder / "shard-000000.parquet").unlink(),
            r"index \(=.*shard-000000.parquet\) cannot be read: No such file",
        ),
        (
            lambda folder: flip(folder / "shard-000000.parquet", 300, 2),
            r"index \(=.*shard-000000.parquet\) does not match",
        ),
        (
            lambda folder: edit_manifest(folder, lambda raw: raw["shards"].reverse()),
            r"manifest \(=.*\) has fingerprint \(=\w{16}\), its shards give \w{16}: it was edited",
        ),
        (
            lambda folder: edit_manifest(folder, lambda raw: raw.pop("fingerprint")),
            r"has fingerprint \(=None\), its shards give",
        ),
        # A shard less: the ledger no longer adds up.
        (
            lambda folder: edit_manifest(folder, lambda raw: raw["shards"].pop()),
            r"manifest.json: shards hold 132 samples, accepted \(=198\)",
        ),
        (
            lambda folder: edit_manifest(folder, lambda raw: raw["ledger"].update(accepted=190)),
            r"manifest.json: ledger: inputs \(=198\) must equal accepted \(=190\)",
        ),
        (
            lambda folder: edit_manifest(folder, lambda raw: raw.update(version=1)),
            r"manifest.json: version \(=1\): Input should be 2",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("{"),
            r"manifest \(=.*manifest.json\) is not JSON; shard again",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("[]"),
            r"manifest \(=.*manifest.json\) is not a mapping; shard again",
        ),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            r"manifest \(=.*manifest.json\) cannot be read: No such file.* tessera shard SRC",
        ),
    ],
)
def test_damage_around_the_payloads_is_one_line(own_shards, damage, message):
    damage(own_shards)
    said = complaint(own_shards)
    assert re.search(message, said)
    assert "\n" not in said


def complaint(folder):
    """What the store says when it is opened, checked, or read from."""
    try:
        store = Store(folder)
        store.check()
    except ConfigError as error:
        return str(error)
    damaged = store.read(np.arange(198)).damaged
    assert {damage.reason for damage in damaged.values()} == {"shard"}
    return next(iter(damaged.values())).detail


def test_a_missing_shard_costs_only_its_own_samples(own_shards):
    (own_shards / "shard-000001.tar").unlink()
    store = Store(own_shards)
    first, second, _ = store.manifest.shard_counts
    damaged = store.read(np.arange(198)).damaged
    assert list(damaged) == list(range(first, first + second))
    assert str(damaged[int(first)]).startswith("shard shard-000001.tar: shard (=")


def test_the_fingerprint_follows_content_and_order_of_the_shards(shards):
    manifest = read_manifest(shards)
    assert read_manifest(shards / "manifest.json").fingerprint == manifest.fingerprint
    first, *rest = manifest.shards
    for changed in (
        (*rest, first),
        (first.model_copy(update={"sha256": "0" * 64}), *rest),
    ):
        assert manifest.model_copy(update={"shards": changed}).fingerprint != manifest.fingerprint
    moved = manifest.model_copy(update={"config": {"sources": ["elsewhere"]}})
    assert moved.fingerprint == manifest.fingerprint
