from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_photos import changes, cropped, near_of, photo, words_of
from PIL import Image

from pipeline.bench.plan_growth import photo_like
from pipeline.ingest.near import search as near_duplicates
from pipeline.ingest.near.hash import SIDE, WORDS, cosines
from pipeline.ingest.near.search import BUCKET, TESTS

CALTECH = Path(__file__).parents[3] / "shared/data/caltech101"
NUM_PHOTOS = 40


def random_words(num, seed):
    """Thumbnails with the spectrum of photographs, without the photographs."""
    pixels = np.clip(np.rint(photo_like(np.random.default_rng(seed), num)), 0, 255)
    return pixels.astype("<u1").reshape(num, -1).view("<u8").astype(np.uint64)


def noisy(words, seed):
    """Thumbnails that differ from `words` by up to 2 levels."""
    pixels = words.astype("<u8").view(np.uint8).astype(int)
    pixels += np.random.default_rng(seed).integers(-2, 3, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8).view("<u8").astype(np.uint64)


@pytest.fixture(scope="module")
def family():
    """A crop of a crop of an image, a crop of it, the image, and 20 others."""
    image = photo(0)
    once = cropped(image, 0.0, 0.0)
    twice = cropped(once, 0.0, 0.0)
    return np.stack([words_of(i) for i in (twice, once, image, *map(photo, range(1, 21)))])


def test_a_chain_is_followed_to_its_end(family):
    ranks = np.arange(len(family))[::-1].copy()  # The image is ranked above its crops.
    assert near_of(family[[0, 2]], ranks[[0, 2]]).tolist() == [-1, -1]
    assert near_of(family, ranks).tolist() == [2, 2, *[-1] * 21]


def test_the_better_rank_is_kept_not_the_larger_image(family):
    ranks = np.arange(len(family)) * 7 - 50
    assert near_of(family, ranks).tolist() == [-1, 0, 0, *[-1] * 20]


def test_a_winner_that_is_missing_leaves_both_ends(family):
    middle_last = np.array([0, 9, 1])
    assert near_of(family[:3], middle_last).tolist() == [-1, 0, -1]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(40)), st.integers(0, 2**31))
def test_neither_order_nor_partitions_matter(tmp_path_factory, rows, seed):
    words = random_words(20, seed=1)
    words = np.concatenate([words, noisy(words[:10], seed=2), noisy(words[:10], seed=3)])
    ranks = np.random.default_rng(seed).permutation(40) * 3
    expected = near_of(words, ranks)
    assert (expected >= 0).sum() == 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_PARTITION", 2**7)
        patch.setattr(near_duplicates, "_ROWS_AT_ONCE", 7)
        folder = tmp_path_factory.mktemp("near")
        shuffled = near_of(words[rows], ranks[rows], folder)
    assert not list(folder.iterdir())
    back = np.full(40, -1)
    back[rows] = np.where(shuffled < 0, -1, np.array(rows)[shuffled])
    assert (back == expected).all()


def test_all_copies_lose_to_the_best():
    copies = np.repeat(random_words(1, seed=0), 2 * BUCKET, axis=0)
    ranks = np.random.default_rng(0).permutation(len(copies))
    winners = near_of(copies, ranks)
    best = int(ranks.argmin())
    assert winners[best] == -1
    assert (np.delete(winners, best) == best).all()


def test_in_a_crowd_only_the_best_ranked_are_compared_in_full():
    # Images of equal low and different high frequencies share their keys and are not near.
    rng = np.random.default_rng(0)
    waves = np.zeros((3 * TESTS, SIDE, SIDE))
    waves[:, :6, :6] = rng.standard_normal((6, 6)) * 20
    waves[:, 0, 0] = 120
    waves[:, 9:, 9:] = rng.standard_normal((3 * TESTS, 7, 7)) * 2
    pixels = np.clip(cosines(SIDE) @ waves @ cosines(SIDE).T, 0, 255)
    crowd = pixels.astype("<u1").reshape(len(pixels), -1).view("<u8").astype(np.uint64)
    words = np.concatenate([crowd, crowd[-1:]])
    ranks = np.arange(len(words))
    assert (near_of(words, ranks) == -1).all()  # The copies are ranked last.
    last = len(words) - 1
    assert near_of(words, last - ranks).tolist() == [*[-1] * (last - 1), last, -1]


def test_flat_images_are_kept():
    ramp = np.linspace(0, 4, 80).astype(np.uint8)
    flat = [np.full((60, 80), level, np.uint8) for level in (0, 0, 128, 255)]
    flat += [np.tile(ramp + level, (60, 1)) for level in (100, 100, 101)]
    words = np.stack([words_of(Image.fromarray(gray)) for gray in flat])
    assert (near_of(words, np.arange(len(words))) == -1).all()


def test_no_images_give_no_winners():
    none = np.empty((0, WORDS), np.uint64)
    winners = near_of(none, np.empty(0, np.int64))
    assert (winners.shape, winners.dtype) == ((0,), np.int64)


@pytest.mark.parametrize(
    ("words", "ranks", "law"),
    [
        (np.zeros((2, WORDS - 1), np.uint64), np.arange(2), rf"must be uint64 \(2, {WORDS}\)"),
        (np.zeros((2, WORDS), np.int64), np.arange(2), r"words \(=int64 "),
    ],
)
def test_bad_arguments_name_the_law(words, ranks, law):
    with pytest.raises(ValueError, match=law):
        near_of(words, ranks)


def found(originals, kinds):
    """The share of copies, by kind of change, that lose to the image they were made of."""
    words = np.stack([words_of(image) for image in originals])
    winners = near_of(words, np.arange(len(words)))
    own = np.where(winners < 0, np.arange(len(words)), winners)
    shares = {}
    for name in kinds[0]:
        copies = np.stack([words_of(changed[name]) for changed in kinds])
        both = np.concatenate([words, copies])
        shares[name] = float((near_of(both, np.arange(len(both)))[len(words) :] == own).mean())
    return winners, shares


def test_copies_of_photographs_are_found_and_no_others():
    originals = [photo(number) for number in range(NUM_PHOTOS)]
    rng = np.random.default_rng(0)
    winners, shares = found(originals, [changes(image, rng) for image in originals])
    assert (winners == -1).all()
    assert min(shares.values()) >= 1 - 1 / NUM_PHOTOS, shares
    assert np.mean(list(shares.values())) >= 0.99, shares


@pytest.mark.skipif(not CALTECH.is_dir(), reason=f"{CALTECH} is not here")
def test_copies_of_caltech_are_found():
    paths = sorted(CALTECH.glob("*/*.jpg"))[::30]
    images = [Image.open(path).convert("RGB") for path in paths]
    # A few are flat and never lose.
    originals = [image for image in images if words_of(image).view(np.uint8).std() > 4.5]
    assert len(originals) > 0.98 * len(images)
    rng = np.random.default_rng(0)
    winners, shares = found(originals, [changes(image, rng) for image in originals])
    assert (winners >= 0).sum() <= 3  # Caltech-101 holds some images twice.
    assert min(shares.values()) >= 0.98, shares
    assert np.mean(list(shares.values())) >= 0.99, shares


@pytest.mark.parametrize(
    "num",
    [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)],
)
def test_planted_copies_are_found_among_many(tmp_path, num):
    planted = num // 100
    path = tmp_path / "words"
    words = np.memmap(path, np.uint64, "w+", shape=(num, WORDS))
    for first in range(0, num, 10_000):
        words[first : first + 10_000] = random_words(10_000, seed=first)
    words[num - planted :] = noisy(words[:planted], seed=1)
    winners = near_of(words, np.arange(num), tmp_path)
    assert (winners[: num - planted] == -1).all()
    assert (winners[num - planted :] == np.arange(planted)).mean() > 0.999
    assert list(tmp_path.iterdir()) == [path]
