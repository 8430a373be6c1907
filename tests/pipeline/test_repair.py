import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.bench.machine import memory_mib
from pipeline.dali.graph import GraphOptions
from pipeline.ingest.config import ShardConfig
from pipeline.loading.crops import whole_batches
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
LAST = 15
ROOT, SCRIPT = Path(__file__).parents[2], Path(__file__).with_name("delivering_ranks.py")
MB = 2**20


def options(max_batch, prefetch):
    return GraphOptions(max_batch=max_batch, num_threads=1, device_id=None, prefetch=prefetch)


def order_of(folder, config=ORDER):
    return Order(read_manifest(folder).shard_counts, config, seed=0)


def loader_of(folder, *, on_damage="quarantine", ledger=None, config=ORDER):
    data = Mixture([DataSet(Store(folder), order_of(folder, config))])
    policy = DamagePolicy(on_damage, 0.9, ledger)
    return PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(0, 1), policy=policy)


def deliver(loader, num, prefetch=3):
    with closing(loader.batches(options(loader.max_batch, prefetch))) as batches:
        yield from islice(batches, num)


def rows_of(batch):
    """(sample, what it looks like) of a batch, in order."""
    pairs = zip(batch.sample_ids.tolist(), batch.views.numpy(), strict=True)
    return [(sample_id, view.tobytes()) for sample_id, view in pairs]


def rewrite(folder, sample_ids, change):
    """Change the bytes of images to as many others."""
    manifest = read_manifest(folder)
    ends = np.cumsum(manifest.shard_counts)
    for number, info in enumerate(manifest.shards):
        index = read_index(folder / info.index, sha256=info.index_sha256)
        first = int(ends[number]) - info.num_samples
        with (folder / info.name).open("r+b") as file:
            for row in {i - first for i in sample_ids} & set(range(info.num_samples)):
                file.seek(int(index.offsets[row]))
                image = file.read(int(index.sizes[row]))
                file.seek(int(index.offsets[row]))
                file.write(change(image))


def blank(folder, sample_ids, *, header=True):
    """Overwrite images with zeros, without `header` only what follows the header of the scan.

    There come fill bytes and no end, so that no part of the image decodes.
    """

    def zeros(image):
        kept = image[: image.index(b"\xff\xda") + 14]
        return bytes(len(image)) if header else kept.ljust(len(image), b"\xff")

    rewrite(folder, sample_ids, zeros)


def name_of(folder, sample_id):
    """A pattern of how damage names a sample."""
    store = Store(folder)
    store.read(np.array([sample_id]))  # Key and offset are in the index of an open shard.
    return re.escape(str(store.damage(sample_id, "decode", "")).removesuffix(": "))


def own_anonymous_bytes():
    """Memory of this process that no file backs."""
    return int(memory_mib(os.getpid(), "RssAnon") * 2**20)


@pytest.fixture(params=["header", "scan"])
def spoil(request, vouch):
    """A function (folder, ids): images do not decode, and the index vouches for their bytes.

    Without a header no graph is asked; without the rest, one fails.
    """

    def overwrite(folder, sample_ids):
        blank(folder, sample_ids, header=request.param == "header")
        vouch(folder)

    return overwrite


def at(*places):
    """The samples at (step, position) of the first epoch."""
    return lambda order: [int(order.global_batch(0, step)[n]) for step, n in places]


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize(
    ("pick", "steps"),
    [
        (at((4, 0), (4, 5), (4, 11)), {4}),
        (at(*((4, n) for n in range(12))), {4}),  # A whole batch.
        (at((4, 3), (5, 3), (6, 3), (7, 3)), {4, 5, 6, 7}),  # More in a row than are ahead.
        (at(*((step, n) for step in (4, 5, 6) for n in range(12))), {4, 5, 6}),
        (at((0, 0), (0, 11)), {0}),
        (at((LAST, 0), (LAST, 11)), {LAST}),
        (at((0, 2), (LAST, 2)), {0, LAST}),
    ],
)
def test_only_what_does_not_decode_is_replaced(own_shards, spoil, tmp_path, pick, steps, prefetch):
    clean = [rows_of(batch) for batch in deliver(loader_of(own_shards), LAST + 2)]
    bad = pick(order_of(own_shards))
    spoil(own_shards, bad)
    ledger = tmp_path / "quarantine.jsonl"
    loader = loader_of(own_shards, ledger=ledger)
    changed = set()
    for wanted, batch in zip(clean, deliver(loader, LAST + 2, prefetch), strict=True):
        for there, here in zip(wanted, rows_of(batch), strict=True):
            assert here[0] not in bad
            assert (there != here) == (there[0] in bad)
            changed |= {(batch.epoch, batch.step)} if there != here else set()
    assert {step for epoch, step in changed if epoch == 0} == steps
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["sample_id"] for row in rows} == set(bad)
    # Each is recorded once; a part that does not decode, once for each epoch that asks for one.
    assert len(rows) == len({(row["sample_id"], row["epoch"]) for row in rows})


def test_a_bad_image_on_both_sides_of_an_epochs_end_is_recorded(own_shards, spoil, tmp_path):
    config = ORDER.model_copy(update={"window": 33})  # A whole lane.
    order = order_of(own_shards, config)
    for epoch in range(100):
        both = np.intersect1d(order.global_batch(epoch, LAST), order.global_batch(epoch + 1, 0))
        if len(both):
            break
    spoil(own_shards, both.tolist())
    ledger = tmp_path / "quarantine.jsonl"
    loader = loader_of(own_shards, ledger=ledger, config=config)
    loader.restore({**loader.state(), "epoch": epoch, "step": LAST})
    last, first = deliver(loader, 2)  # Both are ahead when the first one fails.
    assert (last.epoch, first.epoch) == (epoch, epoch + 1)
    assert not np.isin(both, [last.sample_ids, first.sample_ids]).any()
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["sample_id"] for row in rows} == set(both.tolist())
    # Once for good without a header, else once for the view of each epoch.
    assert len(rows) in (len(both), 2 * len(both))
    assert len(rows) == len({(row["sample_id"], row["epoch"]) for row in rows})
    assert loader.counters.replaced == 2 * len(both)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_first_of_two_damages_ahead_is_the_one_named(own_shards, spoil, prefetch):
    order = order_of(own_shards)
    undecodable, flipped = (int(order.global_batch(0, step)[7]) for step in (5, 6))
    spoil(own_shards, [undecodable])
    blank(own_shards, [flipped])
    name = name_of(own_shards, undecodable)
    batches = deliver(loader_of(own_shards, on_damage="error"), 16, prefetch)
    assert [batch.step for batch in islice(batches, 5)] == list(range(5))
    with pytest.raises(DamageError, match=f"{name}: the image does not decode"):
        next(batches)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_an_evaluation_names_the_first_of_two_damages(own_shards, spoil, prefetch):
    spoil(own_shards, [50])
    blank(own_shards, [60])
    name = name_of(own_shards, 50)
    with pytest.raises(DamageError, match=f"{name}: the image does not decode"):
        list(whole_batches(Store(own_shards), np.arange(198), options(10, prefetch), px=32))


def test_an_error_after_a_repaired_batch_is_raised_after_it(own_shards, spoil, monkeypatch):
    order = order_of(own_shards)
    spoil(own_shards, at((5, 7))(order))
    loader, read = loader_of(own_shards), Store.read
    unreadable = order.global_batch(0, 7).tolist()

    def fail(store, sample_ids):
        if sample_ids.tolist() == unreadable:
            raise OSError("the disk is gone")
        return read(store, sample_ids)

    monkeypatch.setattr(Store, "read", fail)
    steps = []
    with pytest.raises(OSError, match="the disk is gone"):
        steps.extend(batch.step for batch in deliver(loader, 16))
    assert steps == list(range(7))


def shrink(image):
    """Say in the frame header of a JPEG that it is lower than it is."""
    height = image.index(b"\xff\xc0") + 5
    return image[:height] + (40).to_bytes(2, "big") + image[height + 2 :]


@pytest.mark.parametrize("change", [lambda image: bytes(len(image)), shrink])
def test_an_image_of_no_or_another_size_never_reaches_the_graph(own_shards, vouch, change):
    bad = at((0, 3), (4, 7), (5, 0))(order_of(own_shards))
    rewrite(own_shards, bad, change)
    vouch(own_shards)
    loader = loader_of(own_shards)
    assert all(np.isin(bad, batch.sample_ids).sum() == 0 for batch in deliver(loader, LAST + 1))
    assert loader.counters.replaced == 3
    assert loader.counters.rebuilds == 0


@pytest.mark.multiprocess
def test_large_batches_with_a_bad_image_do_not_end_the_process(own_shards, spoil, tmp_path):
    large = OrderConfig(global_batch=66, num_lanes=6, window=20)
    bad = set(range(0, 198, 5))
    spoil(own_shards, bad)
    job = {
        "shards": str(own_shards),
        "order": large.model_dump(),
        "on_damage": "quarantine",
        "until": (1, 0),
        "ranks": [(0, 1, str(tmp_path / "out"))],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "job.json"],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, *rows = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert [len(row["ids"]) for row in rows] == [66] * 3
    assert all(set(row["ids"]).isdisjoint(bad) for row in rows)


@pytest.fixture(scope="module")
def make_tiny(make_shards, tmp_path_factory):
    """A function (num) that shards images of 36 x 34 px."""

    def make(num):
        crawl, out = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("tiny_shards")
        for number in range(num):
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((36, 34)).save(crawl / f"{number}.jpg", "JPEG")
        assert make_shards(crawl, out, ShardConfig()).num_samples == num
        return out

    return make


@pytest.mark.parametrize("num_bad", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_failed_graphs_cost_no_good_sample_and_no_memory(make_tiny, vouch, tmp_path, num_bad):
    clean = make_tiny(2 * num_bad)
    folder = shutil.copytree(clean, tmp_path / "shards")
    bad = set(range(0, 2 * num_bad, 2))
    blank(folder, bad, header=False)
    vouch(folder)
    one = OrderConfig(global_batch=1, num_lanes=1, window=64)  # Every bad image fails a graph.
    expected = [rows_of(batch) for batch in deliver(loader_of(clean, config=one), 2 * num_bad)]
    loader, memory = loader_of(folder, config=one), []
    for ((there, view),), batch in zip(expected, deliver(loader, 2 * num_bad), strict=True):
        ((here, seen),) = rows_of(batch)
        assert here not in bad
        assert there in bad or (here, seen) == (there, view)
        memory.append(own_anonymous_bytes())
    # One that was ahead in its place when it was met as a spare fails twice.
    assert num_bad <= loader.counters.rebuilds < 1.1 * num_bad
    assert loader.counters.replaced == num_bad
    assert memory[-1] - memory[num_bad // 2] < 8 * MB
