import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import photo
from PIL import Image

from pipeline.ingest.gate.kernels import luma, shrink


@st.composite
def images_and_sizes(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    size = draw(st.integers(1, width)), draw(st.integers(1, height))
    seed, channels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 3]))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels, *size


@settings(deadline=None)
@given(images_and_sizes())
def test_pixels_are_means_of_equal_areas(drawn):
    pixels, width, height = drawn
    fine = pixels.repeat(height, axis=0).repeat(width, axis=1)  # Areas are whole pixels of it.
    blocks = fine.reshape(height, pixels.shape[0], width, pixels.shape[1], -1)
    small = shrink(pixels, width, height)
    assert small.dtype == np.uint8
    assert np.abs(small - blocks.mean(axis=(1, 3))).max() <= 0.5 + 255 * 2 * 2**-11 * 6


@given(st.integers(0, 255), st.integers(1, 90), st.integers(1, 60))
@settings(deadline=None)
def test_one_colour_stays_what_it_is(value, width, height):
    pixels = np.full((60, 90, 3), value, np.uint8)
    assert (shrink(pixels, width, height) == value).all()


def test_the_same_size_changes_nothing():
    pixels = np.asarray(photo(70, 50))
    np.testing.assert_array_equal(shrink(pixels, 70, 50), pixels)


def test_views_are_read_in_their_own_order():
    pixels = np.asarray(photo(70, 50))
    turned = pixels.swapaxes(0, 1)[:, ::-1]
    np.testing.assert_array_equal(shrink(turned, 20, 30), shrink(turned.copy(), 20, 30))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None)
def test_luma_is_that_of_pillow(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(luma(pixels), expected)
    np.testing.assert_array_equal(luma(pixels[:, ::-1]), expected[:, ::-1])
    np.testing.assert_array_equal(luma(pixels[:, :, :1]), pixels[:, :, 0])
