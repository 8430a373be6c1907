import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ConfigError, parse
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.encode import encode_jpeg, stored_size
from pipeline.crawl.gate import examine, hash_content
from pipeline.dali.decode import decode_rgb

CONFIG = ShardConfig()
ORIENTATION = 0x0112


def photo(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """A smooth picture without any symmetry."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def judge(folder, data: bytes, config: ShardConfig = CONFIG):
    path = folder / "x.jpg"  # Always: names lie.
    path.write_bytes(data)
    return examine(str(path), config)


def turned(orientation: int, image_format: str = "JPEG", **options: object) -> bytes:
    """`photo()`, stored turned, with the tag that makes it upright again."""
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose
    image = photo()
    if orientation in inverse:
        image = image.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, image_format, exif=exif, **options)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_that_declares(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG[:8] + header + PNG[33:]


def png_with_bomb_in_text() -> bytes:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (100 << 20)))
    return PNG[:33] + text + PNG[33:]  # After IHDR.


def with_junk_between_markers(jpeg: bytes) -> bytes:
    place = jpeg.index(b"\xff\xdb")
    return jpeg[:place] + b"\0\0\0" + jpeg[place:]


JPEG = encoded(photo())
PNG = encoded(photo(), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not_image"),
        (b"%PDF-1.7", "not_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_image"),
        (b"\0" * 100, "not_image"),
        (JPEG[: len(JPEG) // 100 + 4], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-2], "truncated"),  # Only the end mark is missing: DALI refuses it.
        (PNG[:-500], "truncated"),
        (encoded(photo(), "WEBP")[:-100], "truncated"),
        (JPEG[:2] + b"\xff\xda" + JPEG[4:], "undecodable"),
        (PNG[:20] + b"\xff" + PNG[21:], "undecodable"),
        (png_that_declares(60_000, 60_000), "too_many_pixels"),  # Pillow raises by itself.
        (png_that_declares(12_000, 8_000), "too_many_pixels"),  # Pillow warns.
        (png_that_declares(8_000, 7_000), "too_many_pixels"),
        (png_with_bomb_in_text(), "undecodable"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "unsupported_depth"),
        (encoded(Image.new("I", (64, 64)), "TIFF"), "unsupported_depth"),
        (with_junk_between_markers(JPEG), "decoder_refuses"),  # Pillow reads it.
    ],
)
def test_what_is_no_whole_image_is_quarantined(tmp_path, data, reason):
    verdict = judge(tmp_path, data)
    assert (verdict.outcome, verdict.reason) == ("quarantined", reason)


def test_a_file_above_the_cap_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # Sparse.
    verdict = examine(str(path), CONFIG)
    assert (verdict.outcome, verdict.reason) == ("quarantined", "too_big")
    assert verdict.content_hash == ""


def test_a_file_that_vanished_is_quarantined(tmp_path):
    verdict = examine(str(tmp_path / "gone.jpg"), CONFIG)
    assert (verdict.outcome, verdict.reason) == ("quarantined", "unreadable")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (photo(200, 31), "min_side"),
        (photo(1, 1), "min_side"),
        (photo(400, 36), "max_aspect"),
        (Image.new("RGB", (64, 64), (10, 200, 30)), "low_information"),
        (Image.new("L", (64, 64), 255), "low_information"),
        (Image.new("RGBA", (64, 64), (9, 9, 9, 0)), "low_information"),  # White once composited.
    ],
)
def test_whole_images_are_filtered_by_rule(tmp_path, image, reason):
    verdict = judge(tmp_path, encoded(image, "PNG"))
    assert (verdict.outcome, verdict.reason) == ("filtered", reason)


@pytest.mark.parametrize(
    ("size", "outcome"), [((32, 320), "accepted"), ((320, 32), "accepted"), ((321, 32), "filtered")]
)
def test_the_limits_themselves_are_inside(tmp_path, size, outcome):
    assert judge(tmp_path, encoded(photo(*size))).outcome == outcome


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded(photo(), progressive=True),
        encoded(photo().convert("L")),
        encoded(photo(), subsampling=0, quality=98),
        encoded(photo(512, 700)),
        turned(1),
        JPEG + b"trailing",
    ],
)
def test_an_upright_jpeg_is_stored_as_it_is(tmp_path, data):
    verdict = judge(tmp_path, data)
    assert (verdict.outcome, verdict.as_is) == ("accepted", True)
    assert verdict.content_hash == hash_content(data)


@pytest.mark.parametrize(
    "data",
    [
        turned(3),
        turned(6),
        encoded(photo().convert("CMYK")),
        encoded(photo(600, 513)),
        encoded(photo(), "PNG"),
        encoded(photo(), "WEBP"),
        encoded(photo().quantize(), "GIF"),
        encoded(photo(), "BMP"),
        encoded(photo(), "TIFF"),
    ],
)
def test_other_images_are_accepted_and_encoded_again(tmp_path, data):
    verdict = judge(tmp_path, data)
    assert (verdict.outcome, verdict.as_is) == ("accepted", False)
    stored = encode_jpeg(data, verdict.image_format, CONFIG.max_side)
    pixels = decode_rgb(stored)
    assert pixels is not None
    width, height = stored_size((verdict.width, verdict.height), CONFIG.max_side)
    assert pixels.shape == (height, width, 3)


def test_broken_exif_does_not_cost_the_image(tmp_path):
    data = encoded(photo(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert judge(tmp_path, data).outcome == "accepted"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(orientation, image_format):
    stored = encode_jpeg(turned(orientation, image_format), image_format, 512)
    pixels = decode_rgb(stored)
    assert pixels is not None
    difference = np.abs(pixels.astype(int) - np.asarray(photo()))
    assert difference.mean() < 6  # A wrong turn gives more than 40.
    with Image.open(io.BytesIO(stored)) as image:
        assert ORIENTATION not in image.getexif()


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (photo().convert("L"), "PNG"),
        (photo().convert("L").convert("LA"), "PNG"),
        (photo().quantize(), "PNG"),
        (photo().convert("1"), "PNG"),
        (photo().convert("CMYK"), "TIFF"),
        (Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257), "PNG"),
    ],
)
def test_every_mode_becomes_the_rgb_it_shows(image, image_format):
    pixels = decode_rgb(encode_jpeg(encoded(image, image_format), image_format, 512))
    assert pixels is not None
    if image.mode == "I;16":
        expected = np.asarray(photo().convert("L").convert("RGB"))
    else:
        expected = np.asarray(image.convert("RGB"))
    limit = 40 if image.mode == "1" else 6  # Dither is the worst case of a JPEG.
    assert np.abs(pixels.astype(int) - expected).mean() < limit


def test_alpha_is_composited_on_white():
    image = photo().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    pixels = decode_rgb(encode_jpeg(encoded(image, "PNG"), "PNG", 512))
    assert pixels is not None
    assert pixels.min() >= 253


def test_stored_bytes_carry_no_metadata():
    data = encoded(photo(), comment=b"secret", exif=b"Exif\0\0secret", icc_profile=b"secret")
    assert b"secret" in data
    assert b"secret" not in encode_jpeg(data, "JPEG", 512)


def test_a_large_jpeg_is_reduced_as_a_full_decode_would_be():
    big = photo(2600, 2200)
    pixels = decode_rgb(encode_jpeg(encoded(big, quality=95), "JPEG", 512))
    assert pixels is not None
    expected = np.asarray(big.resize((605, 512), Image.Resampling.LANCZOS))
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_a_config_no_jpeg_can_hold_is_refused():
    with pytest.raises(ConfigError, match=r"max_side \(=5000\) \* max_aspect \(=20.0\) must be"):
        parse(ShardConfig, {"max_side": 5000, "max_aspect": 20}, "shard")
