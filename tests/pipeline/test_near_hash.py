import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.ingest.near.hash import SIDE, WORDS, near_words

CELLS = 48


def cell_means(gray):
    """Means over a 48 x 48 grid in 1/256 levels, exact: every pixel is repeated 48 times."""
    height, width = gray.shape
    fine = gray.astype(object).repeat(CELLS, axis=0).repeat(CELLS, axis=1)
    sums = fine.reshape(CELLS, height, CELLS, width).sum(axis=(1, 3))
    return [
        [math.floor(Fraction(s * 256, gray.size) + Fraction(1, 2)) for s in row] for row in sums
    ]


def weight(pixel, cell):
    """What a cell adds to a pixel: 16 frequencies, tapered; before it is rounded to 2**-14."""
    total = 1.0
    for k in range(1, SIDE):
        wave = math.cos(math.pi * k * (pixel + 0.5) / SIDE) * math.cos(
            math.pi * k * (cell + 0.5) / CELLS
        )
        total += 2 * wave * math.exp(-((k / SIDE) ** 2))
    return total / CELLS * 2**14


def slow_words(gray):
    """The thumbnail in Python's own integers."""
    cells = cell_means(gray)
    weights = [[round(weight(i, y)) for y in range(CELLS)] for i in range(SIDE)]
    tall = [[sum(w[y] * cells[y][x] for y in range(CELLS)) for x in range(CELLS)] for w in weights]
    whole = 2 ** (8 + 14 + 14)
    pixels = [
        (2 * sum(w[x] * row[x] for x in range(CELLS)) + whole) // (2 * whole)
        for row in tall
        for w in weights
    ]
    return np.array([min(max(p, 0), 255) for p in pixels], np.uint8)


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (60, 45),
        (48, 96),  # Cells are whole pixels.
        (7, 150),  # Cells are parts of pixels.
        (1, 1),
    ],
)
def test_words_are_those_of_exact_arithmetic(height, width):
    gray = np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)
    words = near_words(gray)
    assert (words.shape, words.dtype) == ((WORDS,), np.uint64)
    assert words.astype("<u8").tobytes() == slow_words(gray).tobytes()


def test_rounding_of_the_weights_hangs_on_no_machine():
    # A cosine that is wrong in its last bits must not change an integer weight.
    exact = np.array([[weight(i, y) for y in range(CELLS)] for i in range(SIDE)])
    to_a_tie = np.abs(exact - np.floor(exact) - 0.5)
    assert to_a_tie.min() > 1e-6


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_one_colour_stays_what_it_is(level):
    words = near_words(np.full((33, 70), level, np.uint8))
    assert (words.view(np.uint8) == level).all()


def test_memory_layout_does_not_matter():
    gray = np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)
    assert (near_words(gray.T) == near_words(gray.T.copy())).all()
    assert (near_words(gray[::2, ::3]) == near_words(gray[::2, ::3].copy())).all()


@pytest.mark.parametrize(("size", "scale"), [((96, 72), 8), ((97, 71), 8), ((50, 41), 4)])
def test_means_of_blocks_give_the_words_of_their_blocks(size, scale):
    blocks = [-(-side // scale) for side in size]
    gray = np.random.default_rng(2).integers(0, 256, blocks, dtype=np.uint8)
    shown = gray.repeat(scale, axis=0).repeat(scale, axis=1)[: size[0], : size[1]]
    assert (near_words(gray, size, scale) == near_words(shown)).all()


def test_a_larger_copy_looks_the_same():
    gray = np.random.default_rng(1).integers(0, 256, (50, 64), dtype=np.uint8)
    larger = gray.repeat(3, axis=0).repeat(3, axis=1)
    assert (near_words(larger) == near_words(gray)).all()
