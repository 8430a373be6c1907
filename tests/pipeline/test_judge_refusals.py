import io
import tarfile
import time
import zipfile

import numpy as np
import pytest
from made_images import (
    JPEG,
    PNG,
    encoded,
    gif_that_declares,
    jpeg_of_many_scans,
    jpeg_that_says,
    jpeg_with,
    photo,
    png_chunk,
    png_that_declares,
    png_with,
    png_with_bomb_in_text,
    segment,
)
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import hash_content, judge

CONFIG = ShardConfig(near_duplicates=False)
SMALL = ShardConfig(near_duplicates=False, max_metadata_bytes=1000, max_scans=3)
SOI, SOF0, SOF2 = b"\xff\xd8", b"\xff\xc0", b"\xff\xc2"


def verdict(data, config=CONFIG):
    judged = judge(data, config)
    return judged.outcome, judged.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not_image"),
        (b'{"error": 404}', "not_image"),
        (b"%PDF-1.7 " + JPEG, "not_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>" + JPEG, "not_image"),
        (b"8BPS\0\1" + bytes(100), "not_image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "not_image"),  # JPEG 2000
        (b"\0\0\0\x18ftypmp42" + bytes(100), "not_image"),
        (bytes(100), "not_image"),
        (bytes(2000) + JPEG, "not_image"),  # More junk than a download leaves.
        (JPEG[:1], "not_image"),
        (JPEG[:4], "truncated"),
        (JPEG[: len(JPEG) // 100 + 4], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[: len(JPEG) * 99 // 100 - 2], "truncated"),
        (encoded(photo(), progressive=True)[:-300], "truncated"),
        (PNG[:20], "truncated"),
        (PNG[:-500], "truncated"),
        (encoded(photo(), "WEBP")[:-100], "truncated"),
        (encoded(photo().quantize(), "GIF")[:-300], "truncated"),
        (encoded(photo(), "BMP")[:-300], "truncated"),
        (JPEG[:2] + b"\xff\xda" + JPEG[4:], "undecodable"),
        (JPEG[:-2] + bytes(7) + b"\xff\xd9", "undecodable"),  # Extraneous bytes.
        (JPEG[:2] + b"\xff\xd9", "undecodable"),
        (SOI + JPEG, "undecodable"),
        (PNG[:30] + b"\xff" + PNG[31:], "undecodable"),  # Its checksum.
        (PNG[:33] + PNG[8:], "undecodable"),  # Two headers.
        (PNG[:8] + PNG[33:], "undecodable"),
        (jpeg_that_says(SOF0, b"\xff\xc3"), "unsupported_codec"),  # Lossless, not in RGB.
        (jpeg_that_says(SOF0, b"\xff\xc9"), "undecodable"),  # Arithmetic.
        (jpeg_that_says(SOF0, b"\xff\xc5"), "unsupported_codec"),  # Hierarchical.
        (jpeg_that_says(SOF0, b"\xff\xcb"), "unsupported_codec"),  # Lossless and arithmetic.
        (jpeg_that_says(b"\x08\0\x3c", b"\x0c\0\x3c"), "unsupported_codec"),  # 12 bit.
        (jpeg_that_says(b"\x08\0\x3c", b"\x08\0\0"), "unsupported_codec"),  # Height comes later.
        (jpeg_that_says(b"\0\x3c\0\x50", b"\0\x3c\0\0"), "undecodable"),
        (jpeg_that_says(b"\0\x3c\0\x50", b"\xff\xff\xff\xff"), "too_many_pixels"),
        (png_that_declares(60_000, 60_000), "too_many_pixels"),  # Pillow raises by itself.
        (png_that_declares(12_000, 8_000), "too_many_pixels"),  # Pillow warns.
        (png_that_declares(8_000, 7_000), "too_many_pixels"),
        (gif_that_declares(8250, 8250), "too_many_pixels"),
        (png_with_bomb_in_text(), "metadata_too_big"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "unsupported_depth"),
        (encoded(Image.new("I", (64, 64)), "TIFF"), "unsupported_depth"),
        (jpeg_of_many_scans(10_000), "too_many_scans"),
    ],
)
def test_what_is_no_whole_image_is_quarantined(data, reason):
    started = time.process_time()
    assert verdict(data) == ("quarantined", reason)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg_with(segment(0xE1, bytes(1001))), "metadata_too_big"),
        (jpeg_with(*[segment(0xFE, bytes(300))] * 4), "metadata_too_big"),  # In sum.
        (png_with(png_chunk(b"tEXt", bytes(1001))), "metadata_too_big"),
        (png_with(png_chunk(b"iTXt", b"k\0\1\0\0\0" + bytes(1001))), "metadata_too_big"),
        (encoded(photo(), "WEBP", exif=bytes(1001)), "metadata_too_big"),
        (encoded(photo().quantize(), "GIF", comment=b"x" * 1001), "metadata_too_big"),
        (encoded(photo(), "TIFF", icc_profile=bytes(1001)), "metadata_too_big"),
        (encoded(photo(), progressive=True), "too_many_scans"),
    ],
)
def test_limits_of_the_configuration_hold(data, reason):
    assert verdict(data, SMALL) == ("quarantined", reason)
    assert verdict(data)[0] == "accepted"


def test_more_bytes_than_the_limit_are_not_looked_at():
    judged = judge(JPEG, ShardConfig(near_duplicates=False, max_bytes=len(JPEG) - 1))
    assert (judged.reason, judged.content_hash) == ("too_big", "")
    config = ShardConfig(near_duplicates=False, max_bytes=len(JPEG))
    assert judge(JPEG, config).content_hash == hash_content(JPEG)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (photo(200, 31), "min_side"),
        (photo(1, 1), "min_side"),
        (photo(1, 10_000), "min_side"),
        (photo(400, 36), "max_aspect"),
        (photo(3200, 32), "max_aspect"),
        (Image.new("RGB", (64, 64), (10, 200, 30)), "low_information"),
        (Image.new("L", (64, 64), 255), "low_information"),
        (Image.new("RGBA", (64, 64), (9, 9, 9, 0)), "low_information"),  # White once composited.
    ],
)
def test_whole_images_are_filtered_by_rule(image, reason):
    judged = judge(encoded(image, "PNG"), CONFIG)
    assert (judged.outcome, judged.reason) == ("filtered", reason)
    assert (judged.width, judged.height) == image.size
    assert judged.stored == b""
    small = decode_rgb(judged.thumbnail)
    assert small is not None
    assert max(small.shape[:2]) == min(96, max(image.size))


def test_one_pixel_of_another_colour_is_information():
    image = Image.new("RGB", (64, 64), (10, 200, 30))
    image.putpixel((13, 41), (13, 200, 30))  # Not among the pixels that are looked at first.
    assert judge(encoded(image, "PNG"), CONFIG).outcome == "accepted"
    image.putpixel((13, 41), (12, 200, 30))
    assert judge(encoded(image, "PNG"), CONFIG).reason == "low_information"


@pytest.mark.parametrize(
    ("size", "outcome"), [((32, 320), "accepted"), ((320, 32), "accepted"), ((321, 32), "filtered")]
)
def test_the_limits_themselves_are_inside(size, outcome):
    assert judge(encoded(photo(*size)), CONFIG).outcome == outcome


def test_damage_that_the_trainer_would_deliver_is_found():
    noise = np.random.default_rng(0).normal(0, 12, (300, 400, 3))
    image = (np.asarray(photo(400, 300)) + noise).clip(0, 255).astype(np.uint8)
    data = encoded(Image.fromarray(image), quality=90)
    rng, found = np.random.default_rng(0), 0
    for place in rng.integers(1000, len(data) - 40, 40):
        damaged = data[:place] + bytes(40) + data[place + 40 :]
        found += judge(damaged, CONFIG).outcome == "quarantined" and decode_rgb(damaged) is not None
    assert found >= 10  # The rest comes into step again, which only a hash could tell.


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_an_archive_that_begins_with_a_jpeg_is_no_jpeg(tar_format):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jpg", JPEG)
    for data in (sink.getvalue(), zipped.getvalue()):
        assert judge(data, CONFIG).reason == "not_image"
