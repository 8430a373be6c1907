import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.shards.headers import MAX_PIXELS, HeaderError, read_size

REASONS = ("empty", "header", "too_many_pixels", "truncated")
REAL_IMAGES = Path(os.environ.get("TESSERA_TEST_IMAGES", "tests/images"))  # Any; not kept here.
SIDES = st.integers(1, 300)
FORMATS = {
    "jpeg": ("JPEG", "RGB", {"subsampling": 2}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True}),
    "gray jpeg": ("JPEG", "L", {}),
    "cmyk jpeg": ("JPEG", "CMYK", {}),
    "turned jpeg": (
        "JPEG",
        "RGB",
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"},
    ),
    "png": ("PNG", "RGB", {}),
    "palette png": ("PNG", "P", {}),
    "lossy webp": ("WEBP", "RGB", {"method": 0}),
    "lossless webp": ("WEBP", "RGB", {"lossless": True, "method": 0}),
    "webp with alpha": ("WEBP", "RGBA", {"method": 0}),
}
"""Format, mode and options for Pillow."""


def encode(name: str, width: int = 40, height: int = 30) -> bytes:
    image_format, mode, options = FORMATS[name]
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def judge(data: bytes | bytearray) -> tuple[int, int] | str:
    """The size, or the reason why there is none."""
    try:
        return read_size(memoryview(data))
    except HeaderError as error:
        return error.reason


@given(st.sampled_from(sorted(FORMATS)), SIDES, SIDES)
def test_the_size_is_the_one_pillow_reads(name, width, height):
    assert judge(encode(name, width, height)) == (width, height)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_size_is_the_one_the_decoder_that_trains_gives(name):
    data = encode(name)
    width, height = judge(data)
    decoded = decode_rgb(data)
    upright = (width, height) if name == "turned jpeg" else (height, width)
    assert decoded.shape == (*upright, 3)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_cut_image_is_never_taken(name):
    data = encode(name)
    verdicts = [judge(data[:length]) for length in range(len(data) - 8)]
    assert set(verdicts) == {"empty", "header", "truncated"}
    assert verdicts == sorted(verdicts)  # Nothing, a part of the header, all of it.


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("tail", [bytes(5000), b"\x01\x02\x03", b"trailer of a camera" * 400])
def test_bytes_after_the_end_are_ignored(name, tail):
    assert judge(encode(name) + tail) == (40, 30)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"])
)
def test_any_bytes_give_a_size_or_a_reason(data, magic):
    verdict = judge(magic + data)
    assert verdict in REASONS or 0 < verdict[0] * verdict[1] <= MAX_PIXELS


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_a_damaged_header_gives_a_size_or_a_reason(name, data):
    image = bytearray(encode(name))
    position = data.draw(st.integers(0, min(len(image), 700) - 1))
    image[position] = data.draw(st.integers(0, 255))
    verdict = judge(image)
    assert verdict in REASONS or 0 < verdict[0] * verdict[1] <= MAX_PIXELS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<html>404</html>", "header"),
        (b"GIF89a" + bytes(100), "header"),
        (b"BM" + bytes(100), "header"),
        (b"RIFF\x10\0\0\0WAVEfmt " + bytes(100), "header"),
        (b"RIFF\x10\0\0\0WEBPVP9 " + bytes(100), "header"),
        (b"\xff\xd8\xff\xd9", "header"),  # Begins and ends, with nothing between.
        (b"\xff\xd8\xff\xfe\x00\x01" + bytes(100), "header"),  # A segment shorter than its length.
        (b"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI" + bytes(100), "header"),  # Apple's own kind of PNG.
    ],
)
def test_what_is_no_image_is_told(data, expected):
    assert judge(data) == expected


def frame(width: int, height: int, precision: int = 8, components: int = 3) -> bytes:
    """A JPEG of a frame header and an end."""
    sof = struct.pack(">BHHB", precision, height, width, components) + bytes(3 * components)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(sof) + 2) + sof + b"\xff\xd9"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (frame(10_000, 10_000), (10_000, 10_000)),  # 100 megapixels, and not one more.
        (frame(10_000, 10_001), "too_many_pixels"),
        (frame(60_000, 60_000), "too_many_pixels"),
        (frame(0, 10), "header"),
        (frame(10, 0), "header"),  # The height follows the first scan; decoders refuse it.
        (frame(10, 10, precision=12), "header"),
        (frame(10, 10, components=2), "header"),
    ],
)
def test_only_sizes_that_can_be_decoded_are_taken(image, expected):
    assert judge(image) == expected


def test_a_png_may_not_declare_a_bomb():
    image = bytearray(encode("png"))
    image[16:24] = struct.pack(">II", 50_000, 50_000)
    assert judge(bytes(image)) == "too_many_pixels"


def test_the_end_of_a_thumbnail_is_no_end():
    thumbnail = encode("jpeg", 8, 8)
    exif = b"Exif\0\0" + thumbnail
    whole = encode("jpeg")
    image = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    assert judge(image) == (40, 30)
    assert judge(image[: len(image) - 100]) == "truncated"


def test_fill_bytes_and_junk_between_segments_are_passed_over():
    whole = encode("jpeg")
    image = whole[:2] + b"\xff\xff\xff" + whole[3:20] + b"\x00\x01" + whole[20:]
    assert Image.open(io.BytesIO(image)).size == (40, 30)
    assert judge(image) == (40, 30)


@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason="TESSERA_TEST_IMAGES names no folder")
@pytest.mark.filterwarnings("ignore")  # Of Pillow, about damaged metadata.
def test_real_images_agree_with_pillow_wherever_the_decoder_that_trains_reads_them():
    files = sorted(path for path in REAL_IMAGES.rglob("*") if path.is_file())
    agreed = 0
    for path in files[:: max(1, len(files) // 1000)]:
        data = path.read_bytes()
        verdict = judge(data)
        if isinstance(verdict, tuple) and decode_rgb(data) is not None:
            assert verdict == Image.open(io.BytesIO(data)).size, path
            agreed += 1
        if verdict == "header" and data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF")):
            assert decode_rgb(data) is None, path
    assert agreed
