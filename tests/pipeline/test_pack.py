import io
import json

import numpy as np
import pytest
import xxhash
from foreign_shards import contents, index, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError
from pipeline.dali.decode import decode_rgb
from pipeline.dali.graph import GraphOptions
from pipeline.ingest import labelled as packing
from pipeline.ingest.labelled import Packed, content_key, pack
from pipeline.loading.crops import whole_batches
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

CLASSES = ("a", "b")
OPTIONS = GraphOptions(max_batch=8, num_threads=1, device_id=None, prefetch=1)


def encoded(image, image_format, **options):
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def image_of(seed=0, size=(30, 20)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def packed(*data, **changes):
    return [Packed(f"k{n}", d, n % 2, f"folder/{n}", **changes) for n, d in enumerate(data)]


def pixels(store):
    """The views of a store, of images that are square."""
    ids = np.arange(store.manifest.num_samples)
    (batch,) = whole_batches(store, ids, OPTIONS, px=24)
    return batch.views.numpy()


def test_order_bytes_labels_and_members_are_as_given(tmp_path):
    files = [picture(n) for n in (3, 1, 2, 1, 0)]  # One twice: nothing is deduplicated.
    images = packed(*files, members={"xml": b"<annotation/>"}, about={"id": "x"})
    made = pack(images, tmp_path, CLASSES, samples_per_shard=2)
    store = Store(tmp_path)
    assert read_manifest(tmp_path) == made
    assert [shard.num_samples for shard in made.shards] == [2, 2, 1]
    assert store.keys() == [f"k{n}" for n in range(5)]
    assert store.labels().tolist() == [0, 1, 0, 1, 0]
    read = store.read(np.arange(5)).require_whole()
    assert [bytes(payload) for payload in read.payloads] == files
    for number, data in enumerate(files):
        members = store.members(number)
        assert sorted(members) == ["jpg", "json", "xml"]
        assert (members["jpg"], members["xml"]) == (data, b"<annotation/>")
        about = json.loads(members["json"])
        assert (about["source"], about["id"]) == (f"folder/{number}", "x")
        assert about["label"] == CLASSES[number % 2]
        assert about["content_hash"].startswith(content_key(data))


def test_what_is_packed_is_what_an_index_of_its_tars_finds(tmp_path):
    made = pack(packed(*map(picture, range(5))), tmp_path / "packed", CLASSES, samples_per_shard=3)
    index([tmp_path / "packed" / shard.name for shard in made.shards], tmp_path / "index")
    ours, theirs = Store(tmp_path / "packed"), Store(tmp_path / "index")
    assert ours.keys() == theirs.keys()
    assert (ours.labels() == theirs.labels()).all()
    assert (ours.hashes() == theirs.hashes()).all()
    ids = np.arange(5)
    assert (ours.read(ids).widths == theirs.read(ids).widths).all()


def test_the_same_images_give_the_same_bytes(tmp_path):
    images = packed(*map(picture, range(5)), encoded(image_of(), "BMP"), b"no image")
    for name in ("one", "other"):
        pack(images, tmp_path / name, CLASSES, samples_per_shard=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_what_is_there_is_kept_and_not_decoded_again(tmp_path, monkeypatch):
    images = packed(*map(picture, range(6)))
    pack(images, tmp_path, CLASSES, samples_per_shard=2)
    before = contents(tmp_path)
    stored = []
    store_image = packing.store_image
    monkeypatch.setattr(
        packing, "store_image", lambda image: (stored.append(image.key), store_image(image))[1]
    )
    pack(images, tmp_path, CLASSES, samples_per_shard=2)
    assert stored == []
    (tmp_path / "shard-000001.tar").write_bytes(b"cut")
    pack(images, tmp_path, CLASSES, samples_per_shard=2)
    assert stored == ["k2", "k3"]
    assert contents(tmp_path) == before


def test_a_stopped_call_leaves_no_manifest_and_goes_on(tmp_path):
    images = packed(*map(picture, range(6)))
    whole = tmp_path / "whole"
    pack(images, whole, CLASSES, samples_per_shard=2)

    def stops():
        yield from images[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(stops(), tmp_path / "out", CLASSES, samples_per_shard=2)
    assert not (tmp_path / "out" / "manifest.json").exists()
    pack(images, tmp_path / "out", CLASSES, samples_per_shard=2)
    assert contents(tmp_path / "out") == contents(whole)


def test_fewer_images_than_before_leave_nothing_behind(tmp_path):
    images = packed(*map(picture, range(6)))
    pack(images, tmp_path / "out", CLASSES, samples_per_shard=2)
    for out in ("out", "new"):
        pack(images[:3], tmp_path / out, CLASSES, samples_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


@pytest.mark.parametrize("image_format", ["BMP", "GIF", "TIFF"])
def test_other_formats_are_stored_as_png_without_loss(tmp_path, image_format):
    image = image_of(size=(24, 24)).quantize(16) if image_format == "GIF" else image_of(1, (24, 24))
    data = encoded(image, image_format)
    made = pack(packed(data), tmp_path, CLASSES)
    assert made.ledger.accepted == 1
    row = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert row == {"path": "folder/0", "verdict": "encoded", "reason": "format"}
    members = Store(tmp_path).members(0)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decode_rgb(members["png"]) == wanted).all()
    assert (pixels(Store(tmp_path))[0] == wanted).all()
    assert json.loads(members["json"])["content_hash"].startswith(content_key(data))


def test_a_turned_photograph_is_stored_upright_under_the_key_of_its_file(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # A camera held upright.
    data = encoded(image_of(size=(40, 24)), "JPEG", exif=exif)
    pack(packed(data), tmp_path, CLASSES)
    read = Store(tmp_path).read(np.arange(1))
    assert (read.widths[0], read.heights[0]) == (24, 40)
    about = json.loads(Store(tmp_path).members(0)["json"])
    assert about["content_hash"].startswith(content_key(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"some notes", "not_image"),
        (picture(0)[:-200], "truncated"),
        (encoded(image_of(), "BMP")[:400], "truncated"),
        (picture(0)[:300] + b"\xff\xd9", "truncated"),  # Whole by its end, and it is not.
    ],
)
def test_what_cannot_be_used_is_named_and_counted(tmp_path, data, reason):
    made = pack(packed(picture(1), data, picture(2)), tmp_path, CLASSES)
    assert (made.ledger.inputs, made.ledger.accepted) == (3, 2)
    assert made.ledger.quarantined == {reason: 1}
    row = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert row == {"path": "folder/1", "verdict": "quarantined", "reason": reason}
    assert Store(tmp_path).keys() == ["k0", "k2"]


def test_a_shard_without_a_usable_image_is_passed_over(tmp_path):
    made = pack(packed(b"1", b"2", picture(0)), tmp_path, CLASSES, samples_per_shard=2)
    assert [shard.name for shard in made.shards] == ["shard-000001.tar"]
    assert Store(tmp_path).keys() == ["k2"]


@pytest.mark.parametrize(
    ("data", "text"),
    [([], r"0 usable of 0 images\. "), ([b"", b"x"], "0 usable of 2 images: 1 empty, 1 not_image")],
)
def test_no_usable_image_is_refused(tmp_path, data, text):
    with pytest.raises(ConfigError, match=text):
        pack(packed(*data), tmp_path, CLASSES)
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_with_something_else_is_refused_and_stays(tmp_path, shards):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    before = contents(tmp_path), contents(shards)
    for out in (tmp_path / "out", shards):  # The second has shards of a crawl.
        with pytest.raises(ConfigError, match="holds more than packed images"):
            pack(packed(picture(0)), out, CLASSES)
    assert (contents(tmp_path), contents(shards)) == before


@pytest.mark.parametrize("keys", [("a", "a"), ("a.b", "c"), ("", "a")])
def test_keys_are_new_and_without_a_dot(tmp_path, keys):
    with pytest.raises(ValueError, match="must be new, and without a dot"):
        pack([Packed(key, picture(0)) for key in keys], tmp_path, None)


def test_members_of_a_damaged_sample_are_refused(tmp_path):
    made = pack(packed(*map(picture, range(3))), tmp_path, CLASSES)
    tar = tmp_path / made.shards[0].name
    data = bytearray(tar.read_bytes())
    data[data.index(b'"folder/1"')] ^= 1  # In a file that is no image.
    tar.write_bytes(data)
    store = Store(tmp_path)
    with pytest.raises(DamageError, match="k1"):
        store.members(1)
    assert store.members(2)["jpg"] == picture(2)


def test_hashes_keys_and_labels_of_remote_shards_need_no_shard(tmp_path, server, cache):
    pack(packed(*map(picture, range(5))), tmp_path / "out", CLASSES, samples_per_shard=2)
    server.files |= {f"/{name}": data for name, data in contents(tmp_path / "out").items()}
    near, far = Store(tmp_path / "out"), Store(server.url)
    far.use(cache)
    assert (far.hashes() == near.hashes()).all()
    assert far.keys() == near.keys()
    assert (far.labels() == near.labels()).all()
    assert not [path for path in server.asked() if path.endswith(".tar")]
    wanted = [xxhash.xxh3_64_intdigest(picture(n)) for n in range(5)]
    assert far.hashes().tolist() == wanted


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(range(5)), min_size=1, max_size=12), st.integers(1, 5))
def test_every_input_is_in_the_shards_or_counted(tmp_path_factory, numbers, size):
    kinds = [picture(0), picture(1), b"", b"text", encoded(image_of(), "BMP")]
    out = tmp_path_factory.mktemp("packed")
    images = packed(*[kinds[n] for n in numbers])
    usable = [image.key for image, n in zip(images, numbers, strict=True) if n not in (2, 3)]
    if not usable:
        with pytest.raises(ConfigError, match="0 usable"):
            pack(images, out, None, samples_per_shard=size)
        return
    made = pack(images, out, None, samples_per_shard=size)
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    left_out = [row["path"] for row in rows if row["verdict"] == "quarantined"]
    assert Store(out).keys() == usable
    assert sorted(left_out) == sorted(i.source for i in images if i.key not in usable)
    assert made.ledger.inputs == len(images) == len(usable) + len(left_out)
