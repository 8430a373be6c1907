"""JPEGs of rare codes and samplings: accepted where a decoder reads them, with its pixels."""

import base64
import io
import struct

import numpy as np
import pytest
import simplejpeg
from made_images import encoded, photo, segment
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate import jpeg
from pipeline.ingest.gate.judge import judge
from pipeline.shards.headers import HeaderError, read_size

CONFIG = ShardConfig(near_duplicates=False, quality=95, subsampling="444")
SMALLER = CONFIG.model_copy(update={"max_side": 32})
ARITHMETIC = base64.b64decode(  # photo(72, 64) in gray, quality 20, by jpegtran -arithmetic
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDACgcHiMeGSgjISMtKygwPGRBPDc3PHtYXUlkkYCZlo+AjIqgtObDoKrarY"
    "qMyP/L2u71////m8H////6/+b9//j/yQALCABAAEgBAREA/8wABgAQEAX/2gAIAQEAAD8AnvqU4CnrQjmzo5Z6hvSs"
    "7Dz7i0NFuMrD8M/B7zcvUS1UPrHw9ejcCU2g4L7llr6Hno3hwbfjMNsNdYGfL9BFaNPfCjnZQ4die8rLy8wPqvVxdT"
    "J2xFYnVc55TIolI66uOCDKP9RpdeRPAyuRBvmHxTi8wRaR99eLUeSrVp8/YtxkN/OkFDbgFp4JbqHmOSsm980G1AiG"
    "Zx+fxwR0iR3p26pUSKL+H+LwF1iPyUkaETcpSeZ+SYNZIOyW3AdI5wUHeF5D6n1bwP/Z"
)
ARITHMETIC_PROGRESSIVE = base64.b64decode(  # photo(72, 64), quality 8, -arithmetic -progressive
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6//////////////////////"
    "//////////////////////////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////"
    "////////////////////////////////ygARCABAAEgDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAUME/w"
    "AhxAK+RjDonO5qUBIHMgt2OHOgodClR3tTHr09Yv5jskE9dwtIN7GX32W4ClUg/8wABBAF/9oACAEBAAEFAtcpB4O2"
    "9Rbw/8wABBEF/9oACAEDAQE/AYNa+9Zjc//MAAQRBf/aAAgBAgEBPwGCzni0iJ+OURKQOP/MAAQQBf/aAAgBAQAGPw"
    "Ko/8wABBAF/9oACAEBAAE/Idq7cFPYd/aWADp5sZ9qm3cWlsMcq+D/2gAMAwEAAgADAAAAEIKy8cOnKD1brHEUvrXQ"
    "mv/MAAQRBf/aAAgBAwEBPxDjIWsceiSzxJaI9KP9pbbxwF11QP/MAAQRBf/aAAgBAgEBPxCIekri95mAIfM8azVrUQ"
    "u0NpgZgP/MAAQQBf/aAAgBAQABPxAJ+atHaX+3ID9ffUX+tt50Oc4wGh6J64WnW3ysDstI8CMhZf2foiym3lL5Soqj"
    "401BFYD/2Q=="
)


def lossless(pixels, ids, *before):
    """A lossless JPEG (SOF3) of an image (H, W, C): each sample less its left neighbour."""
    levels = pixels.astype(int)
    left = np.concatenate([levels[:, :1], levels[:, :-1]], axis=1)
    left[1:, 0], left[0, 0] = levels[:-1, 0], 128
    bits = ""
    for step in (levels - left).ravel().tolist():
        size = abs(step).bit_length()
        value = step if step > 0 else step + 2**size - 1
        bits += f"{size:04b}" + (f"{value:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = pixels.shape[:2]
    frame = struct.pack(">BHHB", 8, height, width, len(ids))
    frame += b"".join(bytes([number, 0x11, 0]) for number in ids)
    codes = bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])  # Nine categories, of four bits each.
    scan = bytes([len(ids), *(n for number in ids for n in (number, 0)), 1, 0, 0])
    parts = [*before, segment(0xC3, frame), segment(0xC4, codes), segment(0xDA, scan)]
    return b"\xff\xd8" + b"".join(parts) + coded + b"\xff\xd9"


def jpeg_of_441():
    """A JPEG of 4:4:1: the blocks of one of 4:1:1, said to stand above each other."""
    wide = np.asarray(photo(320, 40))
    data = simplejpeg.encode_jpeg(wide, 90, colorsubsampling="411")
    place = data.index(b"\xff\xc0")
    frame = data[place : place + 19].replace(b"\0\x28\x01\x40", b"\0\xa0\0\x50")
    frame = frame.replace(b"\x01\x41", b"\x01\x14")
    return data[:place] + frame + data[place + 19 :]


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


GRAY = np.asarray(photo().convert("L"))[..., None]
ADOBE_YCC = segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")


@pytest.mark.parametrize(
    "data",
    [
        ARITHMETIC,
        ARITHMETIC_PROGRESSIVE,
        lossless(GRAY, [1]),
        lossless(np.asarray(photo()), b"RGB"),
        jpeg_of_441(),
    ],
    ids=["arithmetic", "arithmetic progressive", "lossless gray", "lossless rgb", "4:4:1"],
)
def test_a_jpeg_of_a_rare_code_is_stored_as_a_common_one(data):
    judged = judge(data, CONFIG)
    assert (judged.outcome, judged.reason, judged.as_is) == ("accepted", None, False)
    shown = decode_rgb(judged.stored)
    assert np.abs(shown - by_pillow(data)).max() <= 12
    assert np.abs(shown - by_pillow(data)).mean() < 1.5
    assert b"\xff\xc0" in judged.stored  # Baseline.
    smaller = judge(data, SMALLER)
    assert min(smaller.stored_width, smaller.stored_height) == 32
    reduced = np.asarray(Image.fromarray(by_pillow(data).astype(np.uint8)).resize((8, 8)))
    again = np.asarray(Image.open(io.BytesIO(smaller.stored)).convert("RGB").resize((8, 8)))
    assert np.abs(again.astype(int) - reduced).max() <= 12


@pytest.mark.parametrize("data", [ARITHMETIC, ARITHMETIC_PROGRESSIVE, lossless(GRAY, [1])])
def test_a_cut_jpeg_of_a_rare_code_is_truncated(data):
    for keep in (len(data) * 2 // 3, len(data) - 2):
        assert judge(data[:keep], CONFIG).reason == "truncated"


def test_what_no_decoder_here_reads_is_named_so():
    ycc = lossless(np.asarray(photo()), [1, 2, 3], ADOBE_YCC)
    assert judge(ycc, CONFIG).reason == "unsupported_codec"


def test_an_error_that_a_library_does_not_document_is_told_and_is_no_crash(monkeypatch):
    def fail(*args, **options):
        raise KeyError("of its own")

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", fail)
    judged = judge(encoded(photo()), CONFIG)
    assert (judged.outcome, judged.reason) == ("quarantined", "undecodable")
    assert judged.notes == ("KeyError: 'of its own'",)


@pytest.mark.parametrize(
    "data",
    [
        ARITHMETIC,
        ARITHMETIC_PROGRESSIVE,
        lossless(GRAY, [1]),
        lossless(np.asarray(photo()), [1, 2, 3], ADOBE_YCC),
        jpeg_of_441(),
        *(encoded(photo()).replace(b"\xff\xc0", bytes([255, n])) for n in (0xC5, 0xCB, 0xCF)),
    ],
)
def test_an_index_accepts_only_codes_that_the_trainer_decodes(data):
    pixels = decode_rgb(data)
    try:
        width, height = read_size(memoryview(data))
        size = (height, width, 3)
    except HeaderError:
        size = None
    assert (None if pixels is None else pixels.shape) == size
