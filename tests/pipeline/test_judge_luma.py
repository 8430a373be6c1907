"""A JPEG that is stored as it is comes decoded to its luma; no verdict hangs on that."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import JPEG, encoded, jpeg_with_junk_between_markers, photo, turned
from near_photos import near_of
from near_photos import photo as near_photo
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate import judge as judge_module
from pipeline.ingest.gate.decoded import RefusedError
from pipeline.ingest.gate.judge import decode, judge
from pipeline.ingest.gate.kernels import luma
from pipeline.ingest.near.hash import near_words

CONFIG = ShardConfig(near_duplicates=False)
DATA = Path(__file__).parents[3] / "shared/data"
ODD, VOC = DATA / "odd_images", DATA / "voc_animals"
SEEDS = [
    encoded(photo(), quality=60),
    encoded(photo(), subsampling=0),
    encoded(photo(), subsampling=1),
    encoded(photo(), progressive=True),
    encoded(photo(), restart_marker_blocks=3),
    encoded(photo(), progressive=True, restart_marker_blocks=2),
    encoded(photo().convert("L")),
]


def decodes(data, mode, part=1):
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        sides = {"min_height": -(-height // part), "min_width": -(-width // part)}
        simplejpeg.decode_jpeg(data, mode, **sides, strict=True)
    except ValueError:
        return False
    return True


@settings(max_examples=1500, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=3),
    keep=st.floats(0.3, 1),
    is_cut=st.booleans(),
)
def test_what_colours_refuse_luma_refuses(seed, flips, keep, is_cut):
    data = bytearray(seed)
    start = seed.index(b"\xff\xda") if is_cut else 0  # Among the coded data, or anywhere.
    for place, bit in flips:
        data[start + int(place * (len(data) - 1 - start))] ^= 1 << bit
    if is_cut:
        data = data[: int(keep * len(data))] + b"\xff\xd9"
    damaged = bytes(data)
    try:
        colours = simplejpeg.decode_jpeg_header(damaged)[2]
    except ValueError:
        return
    if colours in ("Gray", "YCbCr"):
        in_colour = decodes(damaged, "RGB")
        for part in (1, 2, 4, 8):
            assert decodes(damaged, "GRAY", part) == in_colour, part


@pytest.mark.skipif(not ODD.is_dir(), reason="the odd images are not here")
def test_odd_images_are_refused_alike():
    in_pixels = 0
    for path in sorted(path for path in ODD.rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            found = decode(data, CONFIG)
        except RefusedError:
            continue
        if found.verbatim:
            assert decodes(found.verbatim, "RGB"), path
        elif data[:2] == b"\xff\xd8":
            in_pixels += 1
    assert in_pixels > 0


@pytest.mark.parametrize(
    ("data", "in_luma"),
    [
        (JPEG, True),
        (encoded(photo(), progressive=True), True),
        (jpeg_with_junk_between_markers(), True),
        (JPEG[:-2], True),
        (turned(1), True),
        (turned(3), False),
        (encoded(photo(600, 513)), False),
        (encoded(photo().convert("CMYK")), False),
        (encoded(photo(), keep_rgb=True), False),
        (encoded(photo().convert("L")), False),  # Its pixels are all there is.
        (encoded(photo(), "PNG"), False),
    ],
)
def test_only_what_is_stored_as_it_is_comes_in_luma(data, in_luma):
    found = decode(data, CONFIG)
    assert (found.decode_colours is not None) == in_luma
    assert bool(found.verbatim) == judge(data, CONFIG).as_is
    if in_luma:
        blocks = (-(-found.height // found.scale), -(-found.width // found.scale), 1)
        assert found.pixels.shape == blocks
        np.testing.assert_array_equal(
            found.in_colour(), simplejpeg.decode_jpeg(found.verbatim, strict=True)
        )


@pytest.mark.parametrize(
    ("size", "scale", "reduced"),
    [
        ((400, 47), 1, (400, 47)),
        ((49, 48), 2, (25, 24)),
        ((400, 95), 2, (200, 48)),
        ((96, 301), 4, (24, 76)),
        ((301, 191), 4, (76, 48)),
        ((301, 192), 8, (38, 24)),
    ],
)
def test_luma_comes_as_means_of_blocks_of_which_enough_are_left(size, scale, reduced):
    config = ShardConfig(near_duplicates=False, min_side=16, max_aspect=10)
    found = decode(encoded(photo(*size)), config)
    assert (found.width, found.height, found.scale) == (*size, scale)
    assert found.pixels.shape == (*reduced[::-1], 1)
    assert found.in_colour().shape == (*size[::-1], 3)
    judged = judge(found.verbatim, config)
    assert (judged.stored_width, judged.stored_height) == size


def test_where_means_could_overflow_colours_are_decoded():
    config = ShardConfig(near_duplicates=False, max_side=2100)
    found = decode(encoded(photo(2080, 2070)), config)
    assert found.verbatim
    assert found.decode_colours is None
    assert found.pixels.shape == (2070, 2080, 3)


def jpeg_of_planes(y, cb, cr):
    planes = [np.ascontiguousarray(plane, np.uint8) for plane in (y, cb, cr)]
    return simplejpeg.encode_jpeg_yuv_planes(*planes, quality=100)


def test_one_colour_is_told_by_its_channels_not_by_luma():
    shape = (64, 64)
    noise = np.random.default_rng(0).integers(130, 170, shape)
    nothing, middle = np.zeros(shape), np.full(shape, 128)
    green = jpeg_of_planes(noise, nothing, nothing)  # Whatever its luma, (0, 255, 0).
    assert np.ptp(simplejpeg.decode_jpeg(green, "GRAY")) > 30
    assert np.ptp(simplejpeg.decode_jpeg(green), axis=(0, 1)).max() <= 2
    assert judge(green, CONFIG).reason == "low_information"
    halves = np.where(np.arange(64) < 32, 100, 150)[None] + nothing
    of_one_luma = jpeg_of_planes(middle, halves, middle)
    assert np.ptp(simplejpeg.decode_jpeg(of_one_luma, "GRAY")) <= 2
    assert judge(of_one_luma, CONFIG).outcome == "accepted"
    assert judge(jpeg_of_planes(middle, middle, middle), CONFIG).reason == "low_information"


def libjpeg_rgb(y, cb, cr):
    """Convert as jdcolor.c does, in 16 bits below the point."""

    def fix(value):
        return int(value * 65536 + 0.5)

    red = y + ((fix(1.402) * (cr - 128) + 32768) >> 16)
    green = y + ((-fix(0.34414) * (cb - 128) + 32768 - fix(0.71414) * (cr - 128)) >> 16)
    blue = y + ((fix(1.772) * (cb - 128) + 32768) >> 16)
    return tuple(np.clip(channel, 0, 255) for channel in (red, green, blue))


def test_no_image_of_one_colour_spreads_further_in_luma():
    cb, cr = np.meshgrid(np.arange(256), np.arange(256))
    least, most = np.full((256,) * 3, 255, np.uint8), np.zeros((256,) * 3, np.uint8)
    for y in range(256):
        most[libjpeg_rgb(y, cb, cr)] = y
    for y in reversed(range(256)):
        least[libjpeg_rgb(y, cb, cr)] = y
    for axis in range(3):  # Of all colours of a cube of 3 x 3 x 3.
        for values, pick in ((least, np.minimum), (most, np.maximum)):
            moved = np.moveaxis(values, axis, 0)
            moved[:-2] = pick(pick(moved[:-2], moved[1:-1]), moved[2:])
    cubes = (slice(-2),) * 3
    spread = most[cubes].astype(int) - least[cubes]
    assert spread.max() == judge_module._MAX_LUMA_SPREAD


@pytest.mark.parametrize("size", [(100, 75), (240, 180), (300, 200), (480, 360)])
@pytest.mark.parametrize("number", range(8))
def test_a_jpeg_that_stays_merges_with_its_copies(number, size):
    shown = near_photo(number, *size)
    whole = encoded(shown, quality=80)
    copies = [whole, encoded(shown, "PNG"), encoded(shown, quality=40)]
    copies.append(encoded(Image.fromarray(simplejpeg.decode_jpeg(whole)), "PNG"))
    judged = [judge(data, ShardConfig()) for data in copies]
    assert [one.as_is for one in judged] == [True, False, True, False]
    words = np.stack([one.near_words for one in judged])
    assert near_of(words, np.arange(4)).tolist() == [-1, 0, 0, 0]


@pytest.mark.skipif(not VOC.is_dir(), reason="VOC animals are not here")
def test_luma_of_photographs_is_nearly_that_of_their_colours():
    for path in sorted(VOC.rglob("*.jpg"))[::5]:
        data = path.read_bytes()
        found = judge(data, ShardConfig())
        shown = near_words(luma(simplejpeg.decode_jpeg(data)))
        apart = found.near_words.view(np.uint8).astype(int) - shown.view(np.uint8)
        assert np.abs(apart).mean() <= 1.5
        assert np.abs(apart).max() <= 12


def test_thumbnails_are_in_colour():
    config = ShardConfig(near_duplicates=False, min_side=120)
    judged = judge(encoded(photo(400, 100), quality=95), config)
    assert judged.reason == "min_side"
    small = decode_rgb(judged.thumbnail)
    assert small.shape == (24, 96, 3)
    expected = np.asarray(photo(400, 100).resize((96, 24), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).mean() < 12
    assert np.abs(small[..., 0].astype(int) - small[..., 2]).max() > 30
