import io
import json
import tarfile
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from pipeline.dali.graph import GraphOptions
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import STOP_AT_DAMAGE, DamagePolicy
from pipeline.loading.stream import StreamConfig, StreamLoader
from pipeline.loading.unindexed import sample_id
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.damage import DamageError

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=1, window=1)


def tars(folder):
    return tuple(sorted(map(str, folder.glob("*.tar"))))


def loader_of(urls, *, policy=STOP_AT_DAMAGE):
    config = StreamConfig(url=urls, samples_per_epoch=198, shuffle=0)
    return StreamLoader(config, ORDER, JIGSAW, seed=0, rank_info=RankInfo(0, 1), policy=policy)


def take(loader, num, prefetch=2):
    options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=prefetch)
    with closing(loader.batches(options)) as batches:
        return list(islice(batches, num))


def views_of(batches):
    """What each visit of each sample looked like, in order."""
    seen = {}
    for batch in batches:
        for i, view in zip(batch.sample_ids, batch.views, strict=True):
            seen.setdefault(int(i), []).append(view.numpy().tobytes())
    return seen


def write_png(tar, key, *, whole):
    """Add a PNG; where it is not whole, its header and its end are, and it does not decode."""
    rng = np.random.default_rng(len(key))
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(sink, "PNG")
    data = bytearray(sink.getvalue())
    if not whole:
        start = data.index(b"IDAT") + 8
        data[start : start + 4000] = bytes(4000)
    info = tarfile.TarInfo(f"{key}.png")
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def png_shard(tmp_path):
    """A function (number of samples, numbers that do not decode) that writes a shard."""

    def write(num, bad):
        path = tmp_path / "png.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(num):
                write_png(tar, f"{number:03}", whole=number not in bad)
        return str(path)

    return write


def test_samples_that_do_not_decode_are_replaced(png_shard, tmp_path):
    ledger = tmp_path / "quarantine.jsonl"
    bad, clean = (3, 4, 17), loader_of(png_shard(40, ()))
    whole = views_of(take(clean, 9))
    url = png_shard(40, bad)
    loader = loader_of(url, policy=DamagePolicy("quarantine", 0.5, ledger))
    batches = take(loader, 9)  # 108 samples: almost three passes.
    ids = [sample_id(url, f"{number:03}") for number in bad]
    seen = views_of(batches)
    assert seen.keys() == whole.keys() - set(ids)
    assert all(set(seen[i][:2]) == set(whole[i][:2]) for i in seen)
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(row["sample_id"] for row in rows) == sorted(ids)  # Each once.
    assert {(row["reason"], row["shard"], row["offset"]) for row in rows} == {("decode", url, -1)}
    assert loader.counters.replaced == 9  # Three in each pass.
    assert loader.counters.rebuilds == 2  # What is known to be bad does not come up again.
    assert all(len(batch.sample_ids) == 12 for batch in batches)


def test_an_image_that_does_not_decode_stops_the_run_by_name(png_shard):
    url = png_shard(40, (17,))
    options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=2)
    with closing(loader_of(url).batches(options)) as batches:
        next(batches)
        with pytest.raises(DamageError) as caught:
            next(batches)
    assert str(caught.value) == f"shard {url}: key 017: the image does not decode."


def test_bad_headers_are_counted_every_time_and_recorded_once(shards, tmp_path):
    folder, ledger = tmp_path, tmp_path / "quarantine.jsonl"
    bad = folder / "bad.tar"
    with tarfile.open(bad, "w") as tar:
        for number in range(24):
            write_png(tar, f"{number:03}", whole=True)
        tar.addfile(tarfile.TarInfo("notes.txt"))
    loader = loader_of(str(bad), policy=DamagePolicy("quarantine", 0.5, ledger))
    take(loader, 6, prefetch=1)  # Six passes of 24 would be 12 steps.
    assert loader.counters.replaced in (2, 3)
    assert [json.loads(row)["key"] for row in ledger.read_text().splitlines()] == ["notes"]
    with pytest.raises(DamageError, match=r"bad\.tar: key notes: no member ends like an image"):
        take(loader_of(str(bad)), 6)


def test_too_much_damage_stops_the_run(png_shard, tmp_path):
    url = png_shard(60, range(0, 60, 3))
    policy = DamagePolicy("quarantine", 0.05, tmp_path / "ledger")
    with pytest.raises(DamageError, match=r"of this epoch were replaced, more than max_bad_frac"):
        take(loader_of(url, policy=policy), 16)


def test_a_stream_in_which_nothing_decodes_ends(png_shard, tmp_path):
    url = png_shard(30, range(30))
    policy = DamagePolicy("quarantine", 0.99, tmp_path / "ledger")
    with pytest.raises(DamageError, match=r"^1097 samples in a row cannot be used; look at "):
        take(loader_of(url, policy=policy), 1)
    assert len((tmp_path / "ledger").read_text().splitlines()) == 30


@pytest.mark.parametrize(("share", "stops"), [(0.3, True), (0.4, False)])
def test_shards_that_cannot_be_read_are_judged_by_their_share(shards, tmp_path, share, stops):
    urls = (*tars(shards)[:2], "pipe:exit 9")
    loader = loader_of(urls, policy=DamagePolicy("quarantine", share, tmp_path / "ledger"))
    if stops:
        with pytest.raises(DamageError) as caught:
            take(loader, 40)
        assert str(caught.value) == (
            "1 of 3 shards of this pass are damaged, more than max_bad_fraction (=0.3) allows; the "
            "last: shard pipe:exit 9: the command failed with exit status 9."
        )
    else:
        take(loader, 40)
        assert loader.counters.replaced >= 3
