"""What the gate stores: which bytes, which pixels, with which notes."""

import io

import numpy as np
import pytest
import simplejpeg
from made_images import (
    JPEG,
    ORIENTATION,
    PNG,
    encoded,
    jpeg_with,
    jpeg_with_junk_between_markers,
    photo,
    png_chunk,
    png_of_deep_rgb,
    png_with,
    segment,
    turned,
)
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import exif_orientation
from pipeline.ingest.gate.encode import stored_size, thumbnail_of
from pipeline.ingest.gate.judge import judge

CONFIG = ShardConfig(near_duplicates=False)
EXIF_6 = b"Exif\0\0" + bytes.fromhex("4d4d002a00000008 0001 0112000300000001 00060000 00000000")


def accepted(data, config=CONFIG):
    judged = judge(data, config)
    assert (judged.outcome, judged.reason) == ("accepted", None)
    return judged


def pixels_of(judged):
    pixels = decode_rgb(judged.stored)
    assert pixels is not None
    assert pixels.shape == (judged.stored_height, judged.stored_width, 3)
    return pixels


def difference(judged, image):
    return np.abs(pixels_of(judged).astype(int) - np.asarray(image.convert("RGB"))).mean()


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded(photo(), progressive=True),
        encoded(photo().convert("L")),
        encoded(photo(), subsampling=0, quality=98),
        encoded(photo(), restart_marker_blocks=2),
        encoded(photo(512, 700)),
    ],
)
def test_an_upright_jpeg_without_metadata_is_stored_byte_for_byte(data):
    judged = accepted(data)
    assert (judged.as_is, judged.notes) == (True, ())
    assert judged.stored == data
    np.testing.assert_array_equal(pixels_of(judged), simplejpeg.decode_jpeg(data))


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (turned(1), ("metadata_dropped",)),
        (encoded(photo(), comment=b"secret", icc_profile=b"secret"), ("metadata_dropped",)),
        (jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0secret")), ("metadata_dropped",)),
        (jpeg_with(segment(0xE0, b"JFXX\0\x10secret")), ("metadata_dropped",)),
        (jpeg_with(segment(0xED, b"secret")), ("metadata_dropped",)),
        (JPEG + b"secret", ("trailing_bytes",)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + JPEG, ("leading_bytes",)),
        (jpeg_with_junk_between_markers(), ("metadata_broken",)),
        (JPEG[:-2], ("missing_end",)),
        (JPEG[:-1], ("missing_end",)),
        (encoded(photo(), progressive=True)[:-2], ("missing_end",)),
        (
            jpeg_with(segment(0xE2, b"MPF\0") + segment(0xFE, b"")),
            ("metadata_dropped", "first_frame"),
        ),
        (
            jpeg_with(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
            ("metadata_dropped", "metadata_broken"),
        ),
    ],
)
def test_only_image_data_is_stored(data, notes):
    whole = encoded(photo(), progressive=True) if b"\xff\xc2" in data else JPEG
    judged = accepted(data)
    assert (judged.as_is, judged.notes) == (True, notes)
    assert judged.stored == whole
    assert accepted(data) == judged


@pytest.mark.parametrize(
    ("image", "image_format", "notes"),
    [
        (photo().convert("L"), "PNG", ()),
        (photo().convert("L").convert("LA"), "PNG", ()),
        (photo().quantize(), "PNG", ()),
        (photo().convert("1"), "PNG", ()),
        (photo(), "PNG", ()),
        (photo(), "BMP", ()),
        (photo(), "TIFF", ()),
        (photo(), "AVIF", ()),
        (photo().quantize(), "GIF", ()),
        (photo().convert("CMYK"), "TIFF", ("cmyk",)),
        (photo().convert("CMYK"), "JPEG", ("cmyk",)),
    ],
)
def test_every_mode_becomes_the_rgb_it_shows(image, image_format, notes):
    judged = accepted(encoded(image, image_format))
    assert (judged.image_format, judged.as_is, judged.notes) == (image_format, False, notes)
    assert difference(judged, image) < (40 if image.mode == "1" else 6)  # Dither is hard.


def test_sixteen_bits_become_their_high_byte():
    gray = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 256 + 200)
    for data, image in [
        (encoded(gray, "PNG"), photo().convert("L")),
        (png_of_deep_rgb(photo()), photo()),
    ]:
        judged = accepted(data)
        assert judged.notes == ("high_depth",)
        assert difference(judged, image) < 3


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
def test_alpha_is_composited_on_the_background(image_format, background):
    image = photo().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste(photo(40, 60), (0, 0))  # Opaque on the left.
    data = encoded(image, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    judged = accepted(data, ShardConfig(near_duplicates=False, background=background))
    assert judged.notes == ("alpha",)
    right = pixels_of(judged)[:, 50:]
    assert np.abs(right.astype(int) - background).max() <= 4


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(orientation, image_format):
    judged = accepted(turned(orientation, image_format))
    assert (judged.width, judged.height) == (80, 60)
    assert ("oriented" in judged.notes) == (orientation != 1)
    assert difference(judged, photo()) < 6  # A wrong turn gives more than 40.
    with Image.open(io.BytesIO(judged.stored)) as image:
        assert ORIENTATION not in image.getexif()


def test_a_turn_and_a_reduction_go_together():
    big = photo(1500, 1100)
    data = encoded(big.transpose(Image.Transpose.ROTATE_90), exif=EXIF_6)
    judged = accepted(data)
    assert (judged.width, judged.height, judged.notes) == (
        1500,
        1100,
        ("metadata_dropped", "oriented", "reduced"),
    )
    assert difference(judged, big.resize((698, 512), Image.Resampling.LANCZOS)) < 3


@pytest.mark.parametrize(
    ("tiff", "orientation"),
    [(EXIF_6[6:], 6), (b"", None), (b"II*\0\xff\0\0\0", None), (EXIF_6[6:22], None)],
)
def test_a_broken_exif_has_no_orientation(tiff, orientation):
    assert exif_orientation(tiff) == orientation


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(image_format):
    more = [photo(seed=1), photo(seed=2)]
    judged = accepted(encoded(photo(), image_format, save_all=True, append_images=more))
    assert judged.notes == ("first_frame",)
    assert difference(judged, photo()) < 8


def test_metadata_of_a_png_that_does_not_unpack_does_not_cost_the_image():
    judged = accepted(png_with(png_chunk(b"iCCP", b"name\0\0no deflate"), png_chunk(b"tEXt", b"x")))
    assert judged.notes == ("metadata_broken",)
    assert judged.stored == accepted(PNG).stored


def test_a_png_without_its_end_mark_is_whole():
    judged = accepted(PNG[:-12])
    assert judged.notes == ("missing_end",)
    assert judged.stored == accepted(PNG).stored


def test_heic_is_read_where_its_library_is():
    pytest.importorskip("pillow_heif").register_heif_opener()
    judged = accepted(encoded(photo(), "HEIF"))
    assert judged.image_format == "HEIC"
    assert difference(judged, photo()) < 6


def test_a_cut_jpeg_is_kept_in_part_on_demand():
    data = encoded(photo(400, 300))[:-1500]
    assert judge(data, CONFIG).reason == "truncated"
    judged = accepted(data, ShardConfig(near_duplicates=False, accept_partial=True))
    assert (judged.as_is, judged.notes) == (False, ("partial",))
    top = np.asarray(photo(400, 300))[:100]
    assert np.abs(pixels_of(judged)[:100].astype(int) - top).mean() < 6


@pytest.mark.parametrize("size", [(600, 513), (1030, 900), (2600, 2200), (513, 5000)])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_large_image_is_reduced_as_a_full_decode_would_be(size, image_format):
    big = photo(*size)
    judged = accepted(
        encoded(big, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    )
    assert (judged.width, judged.height, judged.notes) == (*size, ("reduced",))
    assert (judged.stored_width, judged.stored_height) == stored_size(*size, 512)
    small = big.resize((judged.stored_width, judged.stored_height), Image.Resampling.LANCZOS)
    assert difference(judged, small) < 3


def test_gray_stays_gray():
    for data in (encoded(photo(800, 600).convert("L")), encoded(photo().convert("L"), "PNG")):
        with Image.open(io.BytesIO(accepted(data).stored)) as image:
            assert image.mode == "L"


def test_what_is_encoded_again_obeys_the_configuration():
    data = encoded(photo(), "PNG")
    webp = accepted(data, ShardConfig(near_duplicates=False, store_as="webp"))
    assert webp.stored[8:12] == b"WEBP"
    assert difference(webp, photo()) < 6
    sizes = [
        len(accepted(data, ShardConfig(near_duplicates=False, quality=q)).stored) for q in (50, 100)
    ]
    assert sizes[0] < sizes[1]
    half = accepted(data, ShardConfig(near_duplicates=False, subsampling="420"))
    assert simplejpeg.decode_jpeg_header(half.stored)[3] == "420"
    assert simplejpeg.decode_jpeg_header(accepted(data).stored)[3] == "444"


def test_near_words_are_those_of_the_luma_of_what_is_stored():
    from pipeline.ingest.near.hash import WORDS, near_words

    again = near_words(np.asarray(photo().convert("L")))
    blocks = simplejpeg.decode_jpeg(JPEG, "GRAY", min_width=40, min_height=30)[:, :, 0]
    assert blocks.shape == (30, 40)
    for data, words in ((JPEG, near_words(blocks, (60, 80), 2)), (PNG, again)):
        judged = accepted(data, ShardConfig())
        assert judged.near_words.shape == (WORDS,)
        np.testing.assert_array_equal(judged.near_words, words)
    assert accepted(JPEG).near_words is None


@pytest.mark.parametrize("config", [ShardConfig(), ShardConfig(store_as="webp")])
def test_a_thumbnail_can_be_made_of_what_is_stored(config):
    judged = accepted(PNG, config)
    assert judged.thumbnail == b""
    small = decode_rgb(thumbnail_of(judged.stored))
    assert small.shape == (60, 80, 3)


def test_a_large_image_becomes_a_thumbnail_that_stays_one():
    small = thumbnail_of(encoded(photo(400, 100), quality=95))
    shown = decode_rgb(small)
    assert shown.shape == (24, 96, 3)
    expected = np.asarray(photo(400, 100).resize((96, 24), Image.Resampling.BOX)).astype(int)
    assert np.abs(shown - expected).mean() < 12
    assert thumbnail_of(small) == small
