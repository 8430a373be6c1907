"""WebPs whose EXIF lies behind a chunk of odd length: one verdict wherever they are met."""

import io
import struct
from itertools import islice

import numpy as np
import pytest
from foreign_shards import index, tar_of
from hypothesis import given
from hypothesis import strategies as st
from made_images import ORIENTATION, encoded, photo
from PIL import Image

from pipeline.dali.decode import decode_rgb, decoded_size
from pipeline.dali.graph import GraphOptions
from pipeline.dali.webp import decodable
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import judge
from pipeline.ingest.labelled import Packed, store_image
from pipeline.loading.crops import whole_batches
from pipeline.loading.mixture import RankInfo
from pipeline.loading.resized import Fitting, fitted_batches
from pipeline.loading.unindexed import Unindexed
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import run_here
from pipeline.upkeep.verify import verify

OPTIONS = GraphOptions(max_batch=16, num_threads=1, device_id=None, prefetch=1)
CONFIG = ShardConfig(near_duplicates=False)


def webp(*chunks):
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


def odd(seed=0, **options):
    """A lossless WebP with EXIF behind a chunk of odd length."""
    for start in range(seed, seed + 64):
        data = encoded(photo(seed=start), "WEBP", lossless=True, exif=exif(1), **options)
        place = data.index(b"VP8L")
        if int.from_bytes(data[place + 4 : place + 8], "little") % 2:
            return data
    raise AssertionError("none of 64 photographs has an odd length")


ODD = odd()


def read_by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@given(
    seed=st.integers(0, 1000),
    lossless=st.booleans(),
    alpha=st.booleans(),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    orientation=st.integers(1, 8),
    tail=st.binary(max_size=3),
)
def test_every_webp_with_exif_is_decoded(seed, lossless, alpha, extra, orientation, tail):
    image = photo(40, 30, seed)
    if alpha:
        image.putalpha(photo(40, 30, seed + 1).convert("L"))
    more = {"icc_profile": b"i" * extra[0], "xmp": b"x" * extra[1]}
    data = encoded(image, "WEBP", lossless=lossless, exif=exif(orientation) + tail, **more)
    given_to_dali = decodable(np.frombuffer(data, np.uint8))
    assert decoded_size(given_to_dali) == (30, 40)
    assert (read_by_pillow(given_to_dali.tobytes()) == read_by_pillow(data)).all()
    shown = (40, 30) if orientation >= 5 else (30, 40)
    assert decode_rgb(data).shape == (*shown, 3)


def test_an_announced_exif_that_is_missing_is_decoded():
    data = odd()
    place = data.index(b"EXIF")
    bare = data[:4] + struct.pack("<I", place - 8) + data[8:place]
    assert decoded_size(np.frombuffer(bare, np.uint8)) is None  # Else this module can go.
    assert (decode_rgb(bare) == read_by_pillow(data)).all()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_other_images_are_given_as_they_are(image_format):
    plain = np.frombuffer(encoded(photo(), image_format), np.uint8)
    assert decodable(plain) is plain


@given(st.binary(max_size=60), st.integers(0, 40))
def test_no_bytes_make_it_fail(junk, keep):
    data = np.frombuffer(ODD[:keep] + junk, np.uint8)
    assert decodable(data).dtype == np.uint8


@pytest.mark.parametrize("fast", [False, True])
def test_index_store_stream_and_graph_are_of_one_mind(tmp_path, fast):
    images = [odd(100 * n) for n in range(4)]
    animated = encoded(
        photo(), "WEBP", save_all=True, append_images=[photo(seed=1)], lossless=True, exif=exif(1)
    )
    members = [(f"{n}.webp", data) for n, data in enumerate([*images, animated])]
    tar = tar_of(members, tmp_path / "w.tar")
    index([tar], tmp_path / "indexed", fast=fast)
    assert read_manifest(tmp_path / "indexed").num_samples == len(members)
    store = Store(tmp_path / "indexed")
    shown = [batch.views for batch in whole_batches(store, np.arange(len(members)), OPTIONS, px=24)]
    assert [len(views) for views in shown] == [len(members)]
    checked = verify(str(tmp_path / "indexed"), run_here, deep=True, on_progress=lambda *args: None)
    assert checked.ok, checked.problems
    passed = Unindexed(
        [str(tar)], seed=0, rank_info=RankInfo(0, 1), first_pass=0, report=pytest.fail
    )
    sizes = [decoded_size(sample.image) for sample in islice(passed, len(members))]
    passed.close()
    assert sizes == [(60, 80)] * len(members)
    for data in images:
        assert judge(data, CONFIG).outcome == "accepted"


def test_a_labelled_set_stores_it_unchanged_and_a_folder_reads_it(tmp_path):
    data = odd()
    stored = store_image(Packed("a", data))
    assert (stored.data, stored.ending) == (data, "webp")
    path = tmp_path / "a.webp"
    path.write_bytes(data)
    row = np.array([0])
    plan = Fitting(row, (path,), *(np.array([[60, 80]], np.int32),) * 2, row.astype(np.int32))
    (fitted,) = fitted_batches([plan], OPTIONS)
    assert (fitted.views.numpy()[0] == read_by_pillow(data)).all()
