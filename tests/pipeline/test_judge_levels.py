"""What the numbers of an image mean is told by its own tags: depth, sign, white, transparency."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import PNG, png_chunk
from PIL import Image

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import judge

CONFIG = ShardConfig(near_duplicates=False, quality=95, subsampling="444")
BACKGROUND = 255
SIDE = 64
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 2  # 0 to 252, as 8 bits would show it


def stored(data):
    judged = judge(data, CONFIG)
    assert judged.outcome == "accepted", judged.reason
    with Image.open(io.BytesIO(judged.stored)) as image:
        return np.asarray(image.convert("RGB")).astype(int), judged.notes


def packed(levels, bits, order):
    """Rows of unsigned levels, in bytes."""
    if bits % 8 == 0:
        return levels.astype(f"{order}u{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((levels[..., None] >> shifts & 1).astype(np.uint8)).tobytes()


def gray_tiff(levels, bits, *, min_is_white=False, signed=False, order="<"):
    body = packed(levels, bits, order)
    fields = {
        256: levels.shape[1],
        257: levels.shape[0],
        258: bits,
        259: 1,
        262: 0 if min_is_white else 1,
        273: 8,
        277: 1,
        278: levels.shape[0],
        279: len(body),
        339: 2 if signed else 1,
    }
    mark = b"II" if order == "<" else b"MM"
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, n) for tag, n in fields.items())
    directory = struct.pack(order + "H", len(fields)) + entries + bytes(4)
    start = 8 + len(body) + len(body) % 2
    return mark + struct.pack(order + "HI", 42, start) + body.ljust(start - 8, b"\0") + directory


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("min_is_white", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_gray_tiff_shows_black_as_black_at_any_depth(bits, min_is_white, order):
    levels = RAMP << 8 >> 16 - bits if bits <= 16 else RAMP
    highest = 2**bits - 1
    shown = (levels * 255 / highest).round() if bits < 16 else levels >> 8
    as_stored = highest - levels if min_is_white else levels
    pixels, notes = stored(gray_tiff(as_stored, bits, min_is_white=min_is_white, order=order))
    assert np.abs(pixels - shown[..., None]).max() <= (40 if bits < 8 else 3)
    assert np.abs(pixels - shown[..., None]).mean() < 3
    assert ("high_depth" in notes) == (bits == 16)


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_12_bits_is_scaled_by_them(order):
    pixels, _ = stored(gray_tiff(RAMP << 4, 12, order=order))
    assert np.abs(pixels - RAMP[..., None]).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("min_is_white", [False, True])
def test_signed_levels_are_refused(bits, min_is_white):
    levels = RAMP << bits - 8
    judged = judge(gray_tiff(levels, bits, min_is_white=min_is_white, signed=True), CONFIG)
    assert (judged.outcome, judged.reason) == ("quarantined", "unsupported_depth")


def png(levels, depth, key):
    """A gray or RGB PNG, by the shape of `levels`, in which `key` is transparent."""
    color = 2 if levels.ndim == 3 else 0
    lines = b"".join(b"\0" + packed(row, depth, ">") for row in levels)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], depth, color, 0, 0, 0)
    level = struct.pack(f">{len(key)}H", *key)
    chunks = [(b"IHDR", header), (b"tRNS", level), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return PNG[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


@given(
    depth=st.sampled_from([1, 2, 4, 8, 16]),
    share=st.floats(0, 1),
    above=st.integers(0, 2**16 - 1),
)
def test_the_transparent_level_of_a_gray_png_shows_the_background(depth, share, above):
    highest = 2**depth - 1
    key = int(share * highest)
    other = key - 1 if key else key + 1  # The nearest level stays.
    levels = np.full((SIDE, SIDE), other)
    levels[:, : SIDE // 2] = key
    levels[:, -8:] = highest if other < highest // 2 else 0  # Else of one color.
    levels[:, -8:] = np.where(levels[:, -8:] == key, other, levels[:, -8:])
    shown = other >> 8 if depth == 16 else other * 255 // highest
    beyond = above & ~highest & 0xFFFF  # Bits that a reader has to pass over.
    judged = judge(png(levels, depth, [key | beyond]), CONFIG)
    if judged.reason == "low_information":  # White on white.
        assert shown >= 253
        return
    pixels, notes = stored(png(levels, depth, [key | beyond]))
    assert "alpha" in notes
    assert np.abs(pixels[:, 4:24] - BACKGROUND).max() <= 4
    assert np.abs(pixels[:, 40:48] - shown).max() <= 4


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_color_of_an_rgb_png_shows_the_background(depth):
    key = np.array([10, 20, 30]) if depth == 8 else np.array([1000, 2000, 3000])
    levels = np.empty((SIDE, SIDE, 3), int)
    levels[:] = key
    levels[:, 32:48] += [0, 0, 1]  # Equal in all bytes but the last.
    levels[:, 48:] = 200 << depth - 8
    pixels, notes = stored(png(levels, depth, key))
    assert "alpha" in notes
    assert np.abs(pixels[:, 4:24] - BACKGROUND).max() <= 4
    assert np.abs(pixels[:, 38:42] - (levels[:, 38:42] >> depth - 8)).max() <= 6
    assert np.abs(pixels[:, 54:] - 200).max() <= 4
