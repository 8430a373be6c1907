import gzip
import io
import os
import pickle
import tarfile
from contextlib import closing
from itertools import chain, islice, takewhile
from pathlib import Path

import pytest
import webdataset

from pipeline.loading.mixture import RankInfo
from pipeline.loading.unindexed import Unindexed, shards_of_pass
from pipeline.shards.damage import DamageError

ALONE = RankInfo(0, 1)


def read(urls, num=None, *, rank_info=ALONE, first_pass=0, ledger=None):
    """Take samples, of one pass where `num` is None; `ledger` gets what the pass loses."""
    lost = [] if ledger is None else ledger

    def report(damage):
        if reader.visit == first_pass:
            lost.append(damage)

    reader = Unindexed(urls, seed=0, rank_info=rank_info, first_pass=first_pass, report=report)
    with closing(reader):
        samples = islice(reader, num)
        taken = [*takewhile(lambda s: num is not None or s.visit == first_pass, samples)]
    assert ledger is not None or not lost
    return taken


def facts(samples):
    return [(s.sample_id, s.key, s.image.tobytes(), s.height, s.width) for s in samples]


def tars(folder):
    return sorted(map(str, folder.glob("*.tar")))


def write_tar(path, members):
    """Write (name, bytes) pairs; None in place of the bytes makes a symbolic link."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "a"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return str(path)


@pytest.fixture(scope="module")
def image(shards):
    return read(tars(shards)[:1], 1)[0].image.tobytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own opening.
def test_samples_are_those_that_webdataset_groups(shards):
    for url in tars(shards):
        theirs = list(webdataset.WebDataset(url, shardshuffle=False))
        ours = read([url])
        assert [s.key for s in ours] == [row["__key__"] for row in theirs]
        assert [s.image.tobytes() for s in ours] == [row["jpg"] for row in theirs]
        assert len(ours) > 60


@pytest.mark.parametrize(
    "url",
    ["pipe:cat {}", "pipe:cat {} | cat", "file://{}"],
)
def test_bytes_and_ids_do_not_depend_on_where_a_shard_lies(shards, url):
    path = tars(shards)[1]
    ours, expected = read([url.format(path)]), read([path])
    assert [f[1:] for f in facts(ours)] == [f[1:] for f in facts(expected)]
    if "| cat" not in url:  # The name of a pipe is its command, up to the last slash.
        assert facts(ours) == facts(expected)


def test_compressed_shards_are_read(shards, tmp_path):
    plain = tars(shards)[0]
    packed = tmp_path / Path(plain).name
    packed.write_bytes(gzip.compress(Path(plain).read_bytes(), 1))
    assert facts(read([str(packed)])) == facts(read([plain]))


@pytest.mark.parametrize(("num", "world_size"), [(3, 1), (3, 2), (3, 3), (40, 7)])
def test_the_ranks_share_every_pass(num, world_size):
    urls = [f"{n}.tar" for n in range(num)]
    passes = []
    for number in range(4):
        ranks = [
            shards_of_pass(urls, number, seed=5, rank_info=RankInfo(rank, world_size))
            for rank in range(world_size)
        ]
        assert sorted(chain(*ranks)) == sorted(urls)
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
        passes.append(ranks)
    assert any(ranks != passes[0] for ranks in passes[1:])


def test_ranks_read_disjoint_samples_and_together_all(shards):
    urls = tars(shards)
    parts = [{s.key for s in read(urls, rank_info=RankInfo(rank, 2))} for rank in range(2)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {s.key for s in read(urls)}


def test_each_pass_has_every_sample_once_in_another_order_of_shards(shards):
    samples = read(tars(shards), 5 * 198)
    passes = [[s for s in samples if s.visit == number] for number in range(5)]
    keys = [[s.key for s in one] for one in passes]
    assert all(len(set(one)) == len(one) == 198 for one in keys)
    assert len({tuple(one) for one in keys}) > 2  # 3 shards have 6 orders.
    assert [s.key for s in read(tars(shards), 198, first_pass=3)] == keys[3]


def header_of(tar, number):
    """Offset of the header of a regular file."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()[number].offset


def flip(tar, offset):
    return tar[:offset] + bytes([tar[offset] ^ 1]) + tar[offset + 1 :]


DAMAGES = {
    "cut between two members": (lambda t: t[: header_of(t, 40)], "its end mark is missing"),
    "cut inside a header": (lambda t: t[: header_of(t, 40) + 200], "its end mark is missing"),
    "cut inside an image": (lambda t: t[: header_of(t, 40) + 700], "unexpected end of data"),
    "a flipped bit in a header": (lambda t: flip(t, header_of(t, 40)), "a header is damaged"),
    "the last header flipped": (lambda t: flip(t, header_of(t, -1)), "a header is damaged"),
    "two tars in one": (lambda t: t + t, "something follows the tar's end mark"),
    "zeros in the middle": (
        lambda t: t[: header_of(t, 40)] + bytes(1024) + t[header_of(t, 40) :],
        "something follows the tar's end mark",
    ),
    "an error page": (lambda _: b"<html>Not found</html>" * 100, "a header is damaged, or this is"),
    "an empty file": (lambda _: b"", "its end mark is missing"),
    "zeros": (lambda t: bytes(len(t)), "the tar is empty"),
}


@pytest.mark.parametrize("opener", ["{}", "pipe:cat {}"])
@pytest.mark.parametrize(("break_tar", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_tar_is_told_and_the_next_one_read(shards, tmp_path, break_tar, message, opener):
    bad, good = tmp_path / "bad.tar", tars(shards)[1]
    bad.write_bytes(break_tar(Path(tars(shards)[0]).read_bytes()))
    ledger, url = [], opener.format(bad)
    samples = read([url, good], ledger=ledger)
    assert {s.key for s in read([good])} <= {s.key for s in samples}
    assert [(d.reason, d.shard, d.key) for d in ledger] == [("shard", url, "")]
    assert message in ledger[0].detail
    assert message in str(ledger[0])


@pytest.mark.parametrize(
    ("members", "key", "message"),
    [
        ([("b.json", b"{}")], "b", "no member ends like an image"),
        ([("b.jpg", b"<html>")], "b", "the image cannot be used: header"),
        ([("b.jpg", b"")], "b", "the image cannot be used: empty"),
        ([("b.jpg", None)], "b.jpg", "it is no file with a key and an ending"),
        ([("README", b"x")], "README", "it is no file with a key and an ending"),
        ([("b.1.jpg", b"x"), ("b.2.jpg", b"x")], "b", "several members end like an image"),
    ],
)
def test_a_bad_sample_is_told_and_the_rest_read(tmp_path, image, members, key, message):
    rows = [("a.jpg", image), *members, ("c.JPG", image)]
    url, ledger = write_tar(tmp_path / "x.tar", rows), []
    samples = read([url], ledger=ledger)
    assert [s.key for s in samples] == ["a", "c"]
    assert [(d.reason, d.key, d.offset) for d in ledger] == [("header", key, -1)]
    assert f"shard {url}: key {key}: {message}" in str(ledger[0])


def test_a_cut_image_is_told(tmp_path, image):
    ledger = []
    url = write_tar(tmp_path / "x.tar", [("a.jpg", image[:-300]), ("b.jpg", image)])
    assert [s.key for s in read([url], ledger=ledger)] == ["b"]
    assert [d.detail for d in ledger] == ["key a: the image cannot be used: truncated."]


def test_a_name_that_comes_twice_is_told_and_the_first_kept(tmp_path, image):
    ledger = []
    url = write_tar(tmp_path / "x.tar", [("a.jpg", image), ("a.jpg", b"other")])
    assert [s.image.tobytes() for s in read([url], ledger=ledger)] == [image]
    assert "duplicate file name" in ledger[0].detail
    assert ledger[0].key == "a.jpg"


def test_of_several_images_the_first_is_taken(tmp_path, image):
    url = write_tar(tmp_path / "x.tar", [("a.jpg", image), ("a.seg.png", b"mask")])
    assert [s.image.tobytes() for s in read([url])] == [image]


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_nothing_in_a_shard_is_executed_or_followed(tmp_path, image):
    mark = str(tmp_path / "executed")
    bomb = pickle.dumps(Bomb(mark))
    endings = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "mp", "cbor")
    rows = [("a.jpg", image), *((f"a.{ending}", bomb) for ending in endings)]
    rows.append(("a.__url__", f"pipe:mkdir {mark}".encode()))  # webdataset's name for the shard.
    url, ledger = write_tar(tmp_path / "x.tar", rows), []
    assert [s.url for s in read([url], ledger=ledger)] == [url]
    assert [d.key for d in ledger] == ["a.__url__"]
    assert not Path(mark).exists()
    pickle.loads(bomb)  # It would have gone off.
    assert Path(mark).exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat {tar}; exit 3", "the command failed with exit status 3."),  # A whole tar.
        ("pipe:head -c 100000 {tar}; exit 5", "the command failed with exit status 5."),
        ("pipe:exit 4", "the command failed with exit status 4."),
        ("{tar}.gone", "it cannot be read: No such file or directory."),
    ],
)
def test_a_shard_that_cannot_be_had_is_told(shards, url, message):
    bad, good = tars(shards)[:2]
    url, ledger = url.format(tar=bad), []
    keys = {s.key for s in read([url, good], ledger=ledger)}
    assert keys >= {s.key for s in read([good])}
    assert ("cat" in url) == (keys >= {s.key for s in read([bad])})
    assert [(d.reason, d.shard, d.detail) for d in ledger] == [("shard", url, message)]


@pytest.mark.parametrize("members", [[], [("a.json", b"")]])
def test_a_pass_without_a_usable_sample_ends_the_stream(tmp_path, members):
    url = write_tar(tmp_path / "x.tar", [*members, ("__note__", b"x")])
    with pytest.raises(DamageError, match=r"x\.tar and 0 others gave no usable sample"):
        read([url], 1, ledger=[])
