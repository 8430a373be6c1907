import io
import json
import mmap
import os
import tarfile
from contextlib import closing, nullcontext, suppress
from itertools import islice

import numpy as np
import pytest
from foreign_shards import tar_bytes

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.ingest.config import ShardConfig
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.damage import DamageError
from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.
STEPS = 16
NAME = "shard-000001.tar"
BLOCK = 512


def deliver(folder, on_damage, ledger=None):
    """(epoch, step, place, sample, what it looks like) of an epoch and two steps."""
    store = Store(folder)
    data = Mixture([DataSet(store, Order(store.manifest.shard_counts, ORDER, seed=0))])
    policy = DamagePolicy(on_damage, 0.9, ledger)
    loader = PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(0, 1), policy=policy)
    options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=3)
    with closing(loader.batches(options)) as batches:
        for batch in islice(batches, STEPS + 2):
            for place, sample_id in enumerate(batch.sample_ids.tolist()):
                view = batch.views[place].numpy().tobytes()
                yield batch.epoch, batch.step, place, sample_id, view


@pytest.fixture(scope="module")
def clean(shards):
    return list(deliver(shards, "error"))


def index_of(folder, number=1):
    info = read_manifest(folder).shards[number]
    return read_index(folder / info.index, sha256=info.index_sha256)


def members_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def renamed(rename):
    return lambda tar, index: tar_bytes([(rename(n, name), p) for n, (name, p) in listed(tar)])


def listed(tar):
    return enumerate(members_of(tar))


def json_start(index, row):
    """First byte of the second member of a sample."""
    return int(index.offsets[row] + -(-index.sizes[row] // BLOCK) * BLOCK)


def twice(tar, index, *, at):
    members = members_of(tar)
    return tar_bytes([*members[: at * 2], *members[4:6], *members[at * 2 :]])


def flip_header(tar, index):
    damaged = bytearray(tar)
    damaged[int(index.starts[3]) + 150] ^= 1
    return bytes(damaged)


DAMAGES = {
    "cut between samples": lambda tar, index: tar[: index.starts[9]],
    "cut inside a header": lambda tar, index: tar[: index.starts[9] + 200],
    "cut between image and json": lambda tar, index: tar[: json_start(index, 9)],
    "cut inside an image": lambda tar, index: tar[: index.offsets[9] + index.sizes[9] // 2],
    "a header byte": flip_header,
    "all images, then all json": lambda tar, index: tar_bytes(
        sorted(members_of(tar), key=lambda member: member[0].endswith(".json"))
    ),
    "a key twice, adjacent": lambda tar, index: twice(tar, index, at=3),
    "a key twice, far apart": lambda tar, index: twice(tar, index, at=60),
    "keys with dots": renamed(lambda n, name: f"img.{n // 2}.v1.{name[-3:]}"),
    "no endings": renamed(lambda n, name: f"{n}"),
    "dot files": renamed(lambda n, name: f"d{n // 2}/.{name[-3:]}"),
    "two tars in one file": lambda tar, index: tar + tar,
}


@pytest.fixture(
    params=[
        (name, size)
        for name in DAMAGES
        for size in ("other size", "same size")
        if (name, size) != ("two tars in one file", "same size")  # Which is one tar.
    ],
    ids=", ".join,
)
def damaged(request, own_shards):
    """Shards of which one was damaged after it was indexed, and the samples that this hit.

    With the size it had, only the hashes can tell.
    """
    name, size = request.param
    path, index = own_shards / NAME, index_of(own_shards)
    tar = path.read_bytes()
    other = DAMAGES[name](tar, index)
    assert other != tar
    if size == "same size":
        other = other[: len(tar)].ljust(len(tar), b"\0")
    path.write_bytes(other)
    first = int(read_manifest(own_shards).shard_counts[0])
    ends = np.append(index.starts[1:], len(tar)).tolist()
    hit = [
        first + row
        for row, (start, end) in enumerate(zip(index.starts.tolist(), ends, strict=True))
        if len(other) != len(tar) or other[start:end] != tar[start:end]
    ]
    assert hit
    return own_shards, set(hit), len(other) == len(tar)


def test_damage_is_named_before_its_batch_is_delivered(clean, damaged):
    folder, hit, same_size = damaged
    due = min(step for epoch, step, _, sample, _ in clean if epoch == 0 and sample in hit)
    got = []
    with pytest.raises(DamageError) as caught:
        got.extend(deliver(folder, "error"))
    assert got == clean[: due * 12]
    first = int(read_manifest(folder).shard_counts[0])
    index, message = index_of(folder), str(caught.value)
    if same_size:
        rows = [sample - first for _, step, _, sample, _ in clean if step == due and sample in hit]
        named = [f"shard {NAME}, key {index.keys[r]}, offset {index.offsets[r]}: " for r in rows]
        assert any(message.startswith(name) for name in named)
        assert "do not match their hash" in message
    else:
        assert message.startswith(f"shard {NAME}: ")
        assert "bytes, its manifest says" in message


def test_only_damaged_samples_are_replaced_and_each_is_recorded(clean, damaged, tmp_path):
    folder, hit, same_size = damaged
    ledger = tmp_path / "quarantine.jsonl"
    views = {(epoch, sample): view for epoch, _, _, sample, view in clean}
    met = set()
    for there, here in zip(clean, deliver(folder, "quarantine", ledger), strict=True):
        assert here[:3] == there[:3]
        assert here[3] not in hit
        assert here == there or there[3] in hit
        assert views.get((here[0], here[3]), here[4]) == here[4]  # What takes the place is whole.
        met |= {there[3]} & hit
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert met <= {row["sample_id"] for row in rows} <= hit
    assert len(rows) == len({row["sample_id"] for row in rows})
    assert {row["shard"] for row in rows} == {NAME}
    assert {row["reason"] for row in rows} == {"hash" if same_size else "shard"}
    assert all(bool(row["key"]) == same_size for row in rows)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.parquet"])
@pytest.mark.parametrize("spoil", [os.unlink, lambda path: os.truncate(path, 700)])
def test_a_shard_without_its_files_is_named(own_shards, clean, name, spoil):
    spoil(own_shards / name)
    got = []
    with pytest.raises(DamageError, match=rf"shard {NAME}: \w+ \(=.*{name}\) "):
        got.extend(deliver(own_shards, "error"))
    assert got == clean[: len(got)]


@pytest.fixture(scope="module")
def one_shard(make_shards, tmp_path_factory, shards):
    """A folder of one shard of four images."""
    crawl, out = tmp_path_factory.mktemp("four"), tmp_path_factory.mktemp("one")
    images = [p for name, p in members_of((shards / NAME).read_bytes()) if name.endswith("jpg")]
    for number, image in enumerate(sorted(images, key=len)[:4]):
        (crawl / f"{number}.jpg").write_bytes(image)
    assert make_shards(crawl, out, ShardConfig()).num_samples == 4
    return out


def test_every_flipped_bit_of_a_shard_is_found(one_shard):
    """All bits of all headers and paddings, and a stride over the rest, in a mapped shard."""
    store, index = Store(one_shard), index_of(one_shard, 0)
    path = one_shard / store.manifest.shards[0].name
    ids = np.arange(4)
    assert not store.read(ids).damaged
    size = path.stat().st_size
    inside = np.zeros(size, bool)
    for offset, length in zip(index.offsets, index.sizes, strict=True):
        inside[offset : offset + length] = True
    rows = np.searchsorted(index.starts, np.arange(size), side="right") - 1
    bits = {(place, bit) for place in np.flatnonzero(~inside).tolist() for bit in range(8)}
    bits |= {(n // 8, n % 8) for n in range(0, size * 8, 7)}
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for place, bit in sorted(bits):
            mapped[place] ^= 1 << bit
            damaged = store.read(ids).damaged
            mapped[place] ^= 1 << bit
            assert list(damaged) == [rows[place]], (place, bit)
            assert damaged[rows[place]].reason == "hash"
    assert not store.read(ids).damaged


@pytest.mark.parametrize("name", ["shard-000000.parquet", "manifest.json"])
def test_a_flipped_bit_beside_the_shard_never_gives_other_samples(one_shard, name):
    path, ids = one_shard / name, np.arange(4)
    whole = path.read_bytes()
    expected = list(map(bytes, Store(one_shard).read(ids).payloads))
    found = 0
    try:
        for place in range(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                samples = Store(one_shard).read(ids)
            except ConfigError:
                found += 1
                continue
            if samples.damaged:
                assert len(samples.damaged) == 4
                found += 1
            else:
                assert list(map(bytes, samples.payloads)) == expected
    finally:
        path.write_bytes(whole)
    # What the manifest says of the settings is for people.
    assert found == -(-len(whole) // 3) or name == "manifest.json"
    assert found > len(whole) // 9


@pytest.mark.parametrize("on_damage", ["error", "quarantine"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: (
            path.with_suffix(".new").write_bytes(b"new"),
            path.with_suffix(".new").replace(path),
        ),
    ],
    ids=["deleted", "replaced"],
)
def test_a_shard_that_goes_while_it_is_read_gives_true_bytes_or_stops(
    own_shards, clean, on_damage, harm
):
    views = {(epoch, sample): view for epoch, _, _, sample, view in clean}
    got = deliver(own_shards, on_damage)
    rows = list(islice(got, 3 * 12))
    harm(own_shards / NAME)
    may_stop = suppress(DamageError) if on_damage == "error" else nullcontext()
    with may_stop:
        rows.extend(got)
    assert rows[: 3 * 12] == clean[: 3 * 12]
    assert all(views.get((row[0], row[3]), row[4]) == row[4] for row in rows)


def test_bytes_that_change_while_the_shard_is_read_are_found(own_shards, clean):
    got, rows = deliver(own_shards, "error"), []
    rows.extend(islice(got, 3 * 12))
    path = own_shards / NAME
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    with pytest.raises(DamageError, match=rf"shard {NAME}, key \w+, offset \d+: "):
        rows.extend(got)
    assert rows[: 3 * 12] == clean[: 3 * 12]
    assert len(rows) <= (3 + 4) * 12  # What was checked before lies ahead in the graph.
