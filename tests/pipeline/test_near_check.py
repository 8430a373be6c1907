import numpy as np
import pytest
from near_photos import cropped, photo, resized, with_quality, words_of
from PIL import Image, ImageDraw

from pipeline.ingest.near.check import LOW, WINDOWS, is_flat, open_words, shows, spectra
from pipeline.ingest.near.hash import SIDE


def thumb(image):
    out = np.empty((SIDE, SIDE))
    open_words(words_of(image), out)
    return out


def test_pixels_come_back_from_words():
    image = photo(0)
    stored = np.frombuffer(words_of(image).astype("<u8").tobytes(), np.uint8)
    assert (thumb(image).reshape(-1) == stored).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: with_quality(image, 30),
        lambda image: resized(image, 0.5),
        lambda image: cropped(image, 0.0, 0.0),
        lambda image: cropped(image, 0.3, 0.9),
        lambda image: cropped(image, 0.5, 0.5, part=0.97),
    ],
)
def test_an_image_shows_its_copies(change):
    image = photo(1)
    assert shows(thumb(image), thumb(change(image)))


def test_a_window_does_not_show_what_it_was_cut_from():
    image = photo(1)
    assert not shows(thumb(cropped(image, 0.0, 0.0)), thumb(image))


def test_windows_too_small_are_other_images():
    image = photo(1)
    assert not shows(thumb(image), thumb(cropped(image, 0.5, 0.5, part=0.9)))


def test_other_images_are_not_shown():
    thumbs = [thumb(photo(number)) for number in range(30)]
    assert not any(shows(a, b) for a in thumbs for b in thumbs if a is not b)


def test_one_thing_more_is_another_image():
    image = photo(2)
    other = image.copy()
    ImageDraw.Draw(other).rectangle((100, 60, 145, 105), fill="white")
    ImageDraw.Draw(image).rectangle((100, 60, 145, 105), fill="black")
    assert not shows(thumb(image), thumb(other))


@pytest.mark.parametrize(
    ("spread", "flat"),
    [
        (0, True),
        (6, True),  # A standard deviation of 2 levels: sky.
        (60, False),
    ],
)
def test_what_hardly_varies_is_flat(spread, flat):
    ramp = np.linspace(120 - spread / 2, 120 + spread / 2, 200).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (150, 200)).copy())
    assert is_flat(thumb(image)) == flat


def test_spectra_are_exact_integers_and_start_with_the_mean():
    image = thumb(photo(3))
    out = np.empty((len(WINDOWS), LOW, LOW))
    spectra(image, out)
    assert (out == np.rint(out)).all()
    assert np.abs(out).max() < 2**53
    assert out[0, 0, 0] / 2**32 == pytest.approx(image.mean(), abs=0.01)
    # A pattern of one frequency is found under that frequency alone.
    wave = 100 + 50 * np.cos(np.pi * 3 * (np.arange(SIDE) + 0.5) / SIDE)
    spectra(np.tile(wave, (SIDE, 1)), out)
    top = np.abs(out[0]) / 2**32
    assert np.argsort(top.reshape(-1))[-2:].tolist() == [3, 0]
    assert np.sort(top.reshape(-1))[-3] < 0.05
