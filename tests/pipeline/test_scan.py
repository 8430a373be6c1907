import io
import json

import numpy as np
import pytest
import xxhash
from foreign_shards import contents, index, picture, read_indexes, tar_of
from PIL import Image

from pipeline.config import ConfigError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.samples import MAX_LABEL
from pipeline.shards.store import Store


def test_an_index_tells_where_every_image_lies(crawl, tmp_path):
    made = index([crawl], tmp_path / "out").manifest
    assert made == read_manifest(tmp_path / "out")
    assert [shard.name for shard in made.shards] == [f"{crawl}/{n:05}.tar" for n in range(3)]
    assert (made.num_samples, made.classes) == (15, ("a", "b", "c"))
    assert made.config == {"indexed": [str(crawl)], "fast": False}
    labels = [[0, 1, 0, 1, 0], [1, 2, 1, 2, 1], [2, 0, 2, 0, 2]]
    for number, found in enumerate(read_indexes(tmp_path / "out")):
        tar = (crawl / f"{number:05}.tar").read_bytes()
        assert found.keys == tuple(f"{number:05}{i:04}" for i in range(5))
        assert found.labels.tolist() == labels[number]
        for i in range(5):
            image = tar[found.offsets[i] : found.offsets[i] + found.sizes[i]]
            assert image == picture(10 * number + i)
            assert (found.widths[i], found.heights[i]) == Image.open(io.BytesIO(image)).size
            assert found.hashes[i] == xxhash.xxh3_64_intdigest(image)
        ends = [*found.starts[1:].tolist(), len(tar)]
        spans = [tar[a:b] for a, b in zip(found.starts, ends, strict=True)]
        assert b"".join(spans) == tar
        assert found.span_hashes.tolist() == [xxhash.xxh3_64_intdigest(span) for span in spans]


def test_a_store_reads_the_images_where_they_lie(crawl, tmp_path):
    index([crawl], tmp_path / "out")
    samples = Store(tmp_path / "out").read(np.arange(15))
    images = [picture(10 * number + i) for number in range(3) for i in range(5)]
    assert [payload.tobytes() for payload in samples.payloads] == images
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 0, 2, 0, 2]
    assert not samples.damaged


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.jpg", b"")], "empty"),
        ([("a.jpg", b"<html>404</html>")], "header"),
        ([("a.jpg", picture(1)[:-100])], "truncated"),
        (
            [("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0IEND\0\0\0\0")],
            "too_many_pixels",
        ),
        ([("a.txt", b"a caption"), ("a.json", b"{}")], "no_image"),
        ([("a.gif", picture(1))], "no_image"),
        ([("a", picture(1))], "no_key"),
        ([(".jpg", picture(1))], "no_key"),
        ([("d/.jpg", picture(1))], "no_key"),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_a_sample_that_cannot_be_used_is_counted_and_named(tmp_path, members, reason, fast):
    path = tar_of([("0.jpg", picture(0)), *members, ("z.JPEG", picture(9))], tmp_path / "s.tar")
    made = index([path], tmp_path / "out", fast=fast).manifest
    if fast and reason in ("header", "truncated", "too_many_pixels"):
        assert made.num_samples == 3  # Seen when the loader first reads the shard.
        return
    assert made.ledger.inputs == 3
    assert made.ledger.quarantined == {reason: 1}
    (row,) = map(json.loads, (tmp_path / "out/ledger.jsonl").read_text().splitlines())
    key = members[0][0] if reason == "no_key" else "a"
    assert row == {"path": f"{path}/{key}", "verdict": "quarantined", "reason": reason}
    assert read_indexes(tmp_path / "out")[0].keys == ("0", "z")


def test_what_stands_beside_an_image_belongs_to_its_sample(tmp_path):
    members = [
        ("set/__meta__/note.json", b"{}"),
        ("__info__/x.jpg", b"passed over, as WebDataset does"),
        ("a.b/1.webp", picture(1, "WEBP")),
        ("README", b""),
        ("a.b/1.cls", b"3\n"),
        ("a.b/1.seg.txt", b""),
        ("a.b/2.PNG", picture(2, "PNG")),
    ]
    path = tar_of(members, tmp_path / "s.tar")
    made = index([path], tmp_path / "out").manifest
    (found,) = read_indexes(tmp_path / "out")
    assert (found.keys, found.labels.tolist()) == (("a.b/1", "a.b/2"), [3, -1])
    assert made.ledger.quarantined == {"no_image": 1, "no_key": 1}
    assert made.notes_dropped == {"not_read": 1, "webdataset_meta": 1}
    assert made.classes == ("0", "1", "2", "3")
    assert found.starts[0] == 0


def test_a_key_that_is_not_utf8_is_written_plainly(tmp_path):
    path = tar_of([("caf\udce9.jpg", picture(1))], tmp_path / "s.tar")
    index([path], tmp_path / "out")
    assert read_indexes(tmp_path / "out")[0].keys == (r"caf\xe9",)


@pytest.mark.parametrize(
    ("ending", "text", "label"),
    [
        ("cls", b"7", 7),
        ("cls", b" 0\n", 0),
        ("cls", str(MAX_LABEL).encode(), MAX_LABEL),
        ("cls", b"-1", -1),
        ("cls", b"7.0", 7),
        ("cls", b"007", 7),
        ("cls", str(MAX_LABEL + 1).encode(), None),
        ("cls", b"", -1),
        ("cls", b"1" * 5000, None),
        ("json", b'{"label": 5}', 5),
        ("json", b'{"label": 5.0}', 5),
        ("json", b'{"label": "5"}', 5),
        ("json", b'{"label": NaN}', -1),
        ("json", b'{"label": -1}', -1),
        ("json", b'{"label": -5}', -1),
        ("json", b'{"label": 1e99}', -1),
        ("json", b'{"label": true}', -1),
        ("json", b'{"label": null}', -1),
        ("json", b'{"label": ""}', -1),
        ("json", b'{"label": [1]}', -1),
        ("json", b'["label"]', -1),
        ("json", b'{"label": ', -1),
        ("json", b'{"caption": "no class"}', -1),
        ("json", b"[" * 100_000 + b'"label"', -1),
        ("txt", b"a caption", -1),
    ],
)
def test_labels_are_numbers_or_absent_or_one_clear_line(tmp_path, ending, text, label):
    path = tar_of([("a.jpg", picture(1)), (f"a.{ending}", text)], tmp_path / "s.tar")
    if label is None:
        with pytest.raises(
            ConfigError, match=r"label \(=.*\) of key a in shard .*s\.tar is not a class"
        ):
            index([path], tmp_path / "out")
        assert not (tmp_path / "out/manifest.json").exists()
    else:
        made = index([path], tmp_path / "out").manifest
        assert read_indexes(tmp_path / "out")[0].labels.tolist() == [label]
        assert made.classes == (tuple(map(str, range(label + 1))) if label >= 0 else None)


def test_a_class_name_may_be_any_text(tmp_path):
    members = []
    for number, label in enumerate([r'"caf\u00e9"', r'"\ud800"', '"3a"', '"caf\u00e9"']):
        about = f'{{"label": {label}}}'.encode()
        members += [(f"{number}.jpg", picture(number)), (f"{number}.json", about)]
    made = index([tar_of(members, tmp_path / "s.tar")], tmp_path / "out").manifest
    assert made.classes == ("3a", r"\ud800", "caf\u00e9")
    assert read_indexes(tmp_path / "out")[0].labels.tolist() == [2, 1, 0, 2]


def test_numbers_and_names_as_labels_do_not_mix(tmp_path):
    number = ("a.jpg", picture(1)), ("a.cls", b"1")
    name = ("b.jpg", picture(2)), ("b.json", b'{"label": "dog"}')
    one = tar_of(number, tmp_path / "1.tar")
    other = tar_of(name, tmp_path / "2.tar")
    both = tar_of([*number, *name], tmp_path / "3.tar")
    with pytest.raises(ConfigError, match=r"has names as labels, .* has numbers; index them"):
        index([one, other], tmp_path / "out")
    with pytest.raises(ConfigError, match="both numbers and names"):
        index([both], tmp_path / "out")


def test_equal_images_are_kept(tmp_path):
    path = tar_of([("a.jpg", picture(1)), ("b.jpg", picture(1))], tmp_path / "s.tar")
    ledger = index([path], tmp_path / "out").manifest.ledger
    assert (ledger.accepted, ledger.duplicate) == (2, 0)


def test_a_fast_index_reads_headers_and_labels_only(crawl, tmp_path):
    made = index([crawl], tmp_path / "out", fast=True).manifest
    assert made.config["fast"] is True
    assert [shard.sha256 for shard in made.shards] == [None] * 3
    full = tmp_path / "full"
    index([crawl], full)
    pairs = zip(read_indexes(tmp_path / "out"), read_indexes(full), strict=True)
    for quick, whole in pairs:
        assert quick.keys == whole.keys
        for name in ("starts", "offsets", "sizes", "labels"):
            assert getattr(quick, name).tolist() == getattr(whole, name).tolist()
        for name in ("widths", "heights", "hashes", "span_hashes"):
            assert not getattr(quick, name).any()
    assert index([crawl], tmp_path / "out").num_scanned == 3  # Now with the images.
    assert contents(tmp_path / "out") == contents(full)


def test_shards_without_samples_are_left_out(crawl, tmp_path):
    tar_of([], crawl / "00003.tar")
    tar_of([("a.txt", b"")], crawl / "00004.tar")
    made = index([crawl], tmp_path / "out").manifest
    assert (len(made.shards), made.ledger.inputs) == (3, 16)


def test_nothing_usable_is_one_clear_line(tmp_path):
    path = tar_of([("a.txt", b""), ("b.jpg", b"")], tmp_path / "s.tar")
    with pytest.raises(ConfigError, match="0 usable of 2 samples in 1 shards: 1 empty, 1 no_image"):
        index([path], tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
