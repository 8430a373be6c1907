import hashlib
import itertools
import json
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ConfigError
from pipeline.explain.pictures.permutations import draw_permutations
from pipeline.pretext import permutation_set as permutations
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.permutation_set import (
    distances,
    make_permutations,
    max_mean_hamming_set,
    max_min_hamming_set,
    permutation_set,
    permutations_hash,
    write_permutations,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folder of an empty cache, and a process that remembers no set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    permutations._known.cache_clear()
    yield tmp_path / "cache/tessera/permutations"
    permutations._known.cache_clear()


def jigsaw(**changes):
    plain = {"name": "jigsaw", "grid": 2, "crop_px": 60, "tile_px": 20, "num_permutations": 6}
    return JigsawConfig(**{**plain, **changes})


@pytest.mark.parametrize(
    ("num_tiles", "size", "least"),
    [
        (9, 100, 6),
        (9, 1000, 5),  # The size of the paper.
        (9, 2000, 4),
        (9, 10_000, 3),  # The largest set of Goyal et al. 2019.
        (4, 24, 2),  # Every permutation there is.
        (4, 4, 4),  # A Latin square.
        (16, 30, 14),  # 16! can not be listed: the set is chosen among a sample.
    ],
)
def test_rows_are_distinct_permutations_far_apart(num_tiles, size, least):
    perms = max_min_hamming_set(num_tiles, size, seed=0)
    assert perms.dtype == np.int64
    assert perms.shape == (size, num_tiles)
    assert (np.sort(perms, axis=1) == np.arange(num_tiles)).all()
    assert len(np.unique(perms, axis=0)) == size
    assert distances(perms).min == least


def test_a_small_grid_gives_every_permutation_there_is():
    perms = max_min_hamming_set(4, 24, seed=3)
    assert sorted(map(tuple, perms.tolist())) == sorted(itertools.permutations(range(4)))


def test_the_set_depends_on_the_seed_and_on_nothing_else():
    first = max_min_hamming_set(9, 20, seed=1)
    assert (max_min_hamming_set(9, 20, seed=1) == first).all()
    assert (max_min_hamming_set(9, 20, seed=2) != first).any()


def test_a_smaller_set_opens_a_larger_one():
    # Greedy: the first rows do not depend on how many follow.
    assert (max_min_hamming_set(5, 30, seed=0)[:10] == max_min_hamming_set(5, 10, seed=0)).all()


def test_each_row_is_the_best_that_was_left():
    perms = max_min_hamming_set(4, 10, seed=0)
    everything = np.array(list(itertools.permutations(range(4))))
    for k in range(1, len(perms)):
        apart = (everything[:, None] != perms[None, :k]).sum(axis=2)
        ours = (perms[k] != perms[:k]).sum(axis=1)
        best = max(zip(apart.min(axis=1), apart.sum(axis=1), strict=True))
        assert (ours.min(), ours.sum()) == best


@pytest.mark.parametrize(
    ("num_tiles", "size", "message"),
    [
        (4, 25, "num_permutations (=25) exceeds the 24 permutations of 4 tiles (4!); lower it."),
        (2, 3, "num_permutations (=3) exceeds the 2 permutations of 2 tiles (2!); lower it."),
    ],
)
def test_too_large_a_set_names_the_limit(num_tiles, size, message):
    with pytest.raises(ConfigError) as caught:
        max_min_hamming_set(num_tiles, size, seed=0)
    assert str(caught.value) == message


def test_distances_count_every_pair():
    found = distances(np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0]]))
    assert found.histogram == (0, 0, 2, 1)
    assert found.min == 2
    assert found.mean == pytest.approx(7 / 3)


def test_the_mean_distance_of_the_paper_is_as_large_and_its_minimum_smaller():
    paper, ours = (
        distances(make(9, 1000, seed=0)) for make in (max_mean_hamming_set, max_min_hamming_set)
    )
    assert paper.mean == pytest.approx(ours.mean, abs=1e-4) == pytest.approx(8.008, abs=1e-3)
    assert (paper.min, ours.min) == (2, 5)
    assert paper.histogram[2] < 200  # In lexicographic order it would be thousands.


def test_each_row_of_the_paper_has_the_largest_sum_that_was_left():
    perms = max_mean_hamming_set(4, 20, seed=1)
    everything = np.array(list(itertools.permutations(range(4))))
    for k in range(1, len(perms)):
        sums = (everything[:, None] != perms[None, :k]).sum(axis=(1, 2))
        taken = (everything[:, None] == perms[None, :k]).all(axis=2).any(axis=1)
        assert (perms[k] != perms[:k]).sum() == sums[~taken].max()


@pytest.mark.parametrize("method", ["max_min", "max_mean", "random"])
@pytest.mark.parametrize(("num_tiles", "size"), [(4, 24), (9, 50)])
def test_every_method_gives_distinct_permutations_named_by_the_seed(method, num_tiles, size):
    perms = make_permutations(method, num_tiles, size, seed=1)
    assert perms.dtype == np.int64
    assert perms.shape == (size, num_tiles)
    assert (np.sort(perms, axis=1) == np.arange(num_tiles)).all()
    assert len(np.unique(perms, axis=0)) == size
    assert (make_permutations(method, num_tiles, size, seed=1) == perms).all()
    assert (make_permutations(method, num_tiles, size, seed=2) != perms).any()


def test_a_config_names_its_set(cache):
    sets = [
        permutations_of(jigsaw(**changes))
        for changes in ({}, {"permutation_method": "random"}, {"permutation_seed": 1})
    ]
    assert (sets[0] == max_min_hamming_set(4, 6, seed=0)).all()
    assert (sets[1] == make_permutations("random", 4, 6, seed=0)).all()
    assert (sets[2] == max_min_hamming_set(4, 6, seed=1)).all()


def test_what_a_caller_does_to_a_set_stays_with_the_caller(cache):
    permutation_set("max_min", 4, 6, seed=0)[:] = 0
    assert (permutation_set("max_min", 4, 6, seed=0) == max_min_hamming_set(4, 6, seed=0)).all()


def test_another_process_reads_the_set_and_does_not_make_it(cache, monkeypatch):
    made = permutation_set("max_min", 4, 6, seed=0)
    (file,) = cache.iterdir()
    assert file.name == "max_min-4-6-0-v1.set"
    permutations._known.cache_clear()
    monkeypatch.setattr(permutations, "make_permutations", lambda *a, **b: pytest.fail("made"))
    assert (permutation_set("max_min", 4, 6, seed=0) == made).all()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another set"])
def test_a_damaged_cache_is_made_anew_and_never_served(cache, damage):
    made = permutation_set("max_min", 4, 6, seed=0)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    permutation_set("max_min", 4, 6, seed=5)
    other = (cache / "max_min-4-6-5-v1.set").read_bytes()
    flipped = bytes([*whole[:40], whole[40] ^ 1, *whole[41:]])
    found = {"cut": whole[:-8], "flipped": flipped, "empty": b"", "another set": other}[damage]
    file.write_bytes(found)
    permutations._known.cache_clear()
    assert (permutation_set("max_min", 4, 6, seed=0) == made).all()
    assert file.read_bytes() == whole


def test_a_cache_that_can_not_be_written_is_gone_without(cache):
    cache.parent.parent.write_text("a file where the folder would be")
    made = permutation_set("max_min", 4, 6, seed=0)
    assert (made == max_min_hamming_set(4, 6, seed=0)).all()


def binary(perms):
    return struct.pack("<2i", *perms.shape) + perms.astype("<i4").tobytes()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["npy", "npy of bytes", "npy in columns", "binary"])
def test_a_set_of_others_is_read_as_it_is_counted(tmp_path, first, kind):
    perms = max_min_hamming_set(4, 6, seed=8)
    path, shown = tmp_path / "theirs", perms + first
    with path.open("wb") as file:
        match kind:
            case "npy":
                np.save(file, shown)
            case "npy of bytes":
                np.save(file, shown.astype(np.uint8))
            case "npy in columns":
                np.save(file, np.asfortranarray(shown))
            case "binary":
                file.write(binary(shown))
    read = permutations_of(jigsaw(permutation_file=path))
    assert read.dtype == np.int64
    assert read.flags.c_contiguous
    assert (read == perms).all()


GOOD = max_min_hamming_set(4, 6, seed=8)
TWICE = np.concatenate([GOOD[:5], GOOD[2:3]])
WRONG = np.concatenate([GOOD[:5], [[0, 1, 1, 3]]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"", "is neither .npy nor the int32 binary"),
        (b"not permutations at all", "is neither .npy nor the int32 binary"),
        (binary(GOOD)[:-1], "it has 103 bytes that do not add up"),
        (struct.pack("<2i", -6, -4) + binary(GOOD)[8:], "it has 104 bytes that do not add up"),
        (b"\x93NUMPY\x01\x00", "is no whole .npy file of numbers: "),
        (GOOD[:5], "holds 5 permutations, num_permutations (=6) must be as many; set it to 5"),
        (GOOD[:, :3], "holds an array of shape (6, 3), the puzzle has 4 tiles"),
        (GOOD.ravel(), "holds an array of shape (24,), the puzzle has 4 tiles"),
        (GOOD.astype(float), "holds float64, permutations are integers."),
        (TWICE, "row 2 is there more than once (1 repeated rows)"),
        (WRONG, "row 5 (=[0, 1, 1, 3]) is no permutation of 4 tiles (1 such rows)"),
        (GOOD + 2, "row 0 (="),
        (np.array([{}], dtype=object), "is no whole .npy file of numbers: Object arrays cannot"),
    ],
)
def test_a_file_without_such_a_set_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "theirs"
    if isinstance(content, np.ndarray):
        with path.open("wb") as file:
            np.save(file, content, allow_pickle=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        permutations_of(jigsaw(permutation_file=path))
    assert str(caught.value).startswith(f"permutation_file (={path})")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_huge_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        permutations_of(jigsaw(permutation_file=tmp_path))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**34)  # Read whole, it would take 16 GB.
    with pytest.raises(ConfigError, match="is larger than any set"):
        permutations_of(jigsaw(permutation_file=tmp_path / "huge"))


def test_a_written_set_says_what_it_is_and_is_read_back(tmp_path):
    perms = max_min_hamming_set(4, 6, seed=8)
    path = tmp_path / "new folder" / "set.npy"
    about = json.loads(write_permutations(path, perms, method="max_min", seed=8).read_text())
    assert sorted(file.name for file in path.parent.iterdir()) == ["set.json", "set.npy"]
    found = distances(perms)
    assert about == {
        "size": 6,
        "tiles": 4,
        "method": "max_min",
        "seed": 8,
        "sha256": hashlib.sha256(np.load(path).astype("<i8").tobytes()).hexdigest(),
        "min_distance": found.min,
        "mean_distance": found.mean,
        "histogram": list(found.histogram),
    }
    assert about["sha256"] == permutations_hash(perms)
    assert (permutations_of(jigsaw(permutation_file=path)) == perms).all()
    with pytest.raises(ConfigError, match=r"must end in \.npy"):
        write_permutations(tmp_path / "set.bin", perms, method="max_min", seed=8)


@pytest.mark.parametrize(("num_tiles", "size"), [(2, 2), (9, 40), (64, 5)])
def test_a_picture_of_any_set_can_be_opened(tmp_path, num_tiles, size):
    perms = make_permutations("random", num_tiles, size, seed=0)
    draw_permutations(tmp_path / "set.png", perms, "a <title>")
    draw_permutations(tmp_path / "set.svg", perms, "a <title>")
    with Image.open(tmp_path / "set.png") as picture:
        picture.load()
        assert len(picture.getcolors(2**20)) > 3
    text = (tmp_path / "set.svg").read_text()
    assert "a &lt;title&gt;" in text
    assert text.count("<rect") >= num_tiles**2
    with pytest.raises(ConfigError, match=r"plot \(=.*set\.gif\) must end in \.png or \.svg"):
        draw_permutations(tmp_path / "set.gif", perms, "")
