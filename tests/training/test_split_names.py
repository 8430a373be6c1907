"""Folders whose names are those of a split or a wrapper are never classes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError
from training.transfer.images.tree import list_tree

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation", "dev")
WRAPPERS, LEFTOVERS = ("images", "img", "data"), ("__MACOSX", "@eaDir")
CASES = (str.lower, str.upper, str.title)
ODD = {n.casefold() for n in (*TRAIN, *TEST, *WRAPPERS, *LEFTOVERS)}


def fill(root, *folders):
    for number, folder in enumerate(folders):
        path = root / folder / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    return root


def sources(listing):
    return {side: [one.source for one in files] for side, files in listing.sides.items()}


@pytest.mark.parametrize(
    ("train", "test"),
    [(a(t), a(s)) for (t, s), a in zip(itertools.product(TRAIN, TEST), CASES * 4, strict=True)],
)
def test_every_name_of_a_split_is_one_in_any_case(train, test, tmp_path):
    fill(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    listing = list_tree(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert sources(listing) == {
        "train": [f"{train}/cat/0.jpg", f"{train}/dog/1.jpg"],
        "test": [f"{test}/cat/2.jpg", f"{test}/dog/3.jpg"],
    }
    assert listing.notes == ()


def test_what_the_test_is_comes_before_what_validates(tmp_path):
    fill(tmp_path, *(f"{side}/{c}" for side in ("Train", "Val", "Test") for c in ("cat", "dog")))
    listing = list_tree(tmp_path)
    assert sources(listing)["test"] == ["Test/cat/4.jpg", "Test/dog/5.jpg"]
    assert listing.notes == ("folders beside Train and Test: Val",)


@pytest.mark.parametrize(
    "folders",
    [
        ("images/cat", "images/dog"),
        ("data/Images/cat", "data/Images/dog"),
        ("images/train/cat", "images/train/dog", "images/test/cat", "images/test/dog"),
        ("train/images/cat", "train/images/dog", "test/images/cat", "test/images/dog"),
    ],
)
def test_a_wrapper_is_opened(folders, tmp_path):
    listing = list_tree(fill(tmp_path, *folders))
    assert listing.classes == ("cat", "dog")
    found = sorted(source for files in sources(listing).values() for source in files)
    assert found == sorted(f"{folder}/{n}.jpg" for n, folder in enumerate(folders))


def test_leftovers_are_passed_over_at_any_depth_and_named(tmp_path):
    fill(tmp_path, "cat", "dog", "__MACOSX/cat", "@eaDir", "dog/@eaDir")
    listing = list_tree(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert sources(listing) == {"all": ["cat/0.jpg", "dog/1.jpg"]}
    assert listing.notes == ("folders passed over: @eaDir, __MACOSX",)


@pytest.mark.parametrize(
    ("folders", "law"),
    [
        (("Test/cat", "Test/dog"), "has Test/ and no train/ or training/"),
        (("Training/cat", "Training/dog"), "has Training/ and none of test, testing, val"),
        (("train/cat", "train/data", "Val/cat"), "holds data/ where folders of classes"),
        (
            ("train/cat", "Training/cat", "test/cat"),
            "holds Training and train, which name the same",
        ),
        (("train/cat", "test/cat", "TEST/dog"), "holds TEST and test, which name the same side"),
        (("cat", "dog", "images"), "holds images/ where folders of classes are expected"),
        (("cat", "dog", "val"), "has val/ and no train/ or training/"),
        (("train/cat", "train/Images", "test/cat"), "holds Images/ where folders of classes"),
        (("train/cat", "train/test", "test/cat"), "holds test/ where folders of classes"),
    ],
)
def test_what_can_not_be_told_is_refused_by_name(folders, law, tmp_path):
    fill(tmp_path, *folders)
    with pytest.raises(ConfigError) as caught:
        list_tree(tmp_path)
    assert law in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_train_among_vehicles_and_names_that_contain_a_splits_are_classes(tmp_path):
    fill(tmp_path, "train", "bullet_train", "test_tube", "valley", "images_of_cats")
    listing = list_tree(tmp_path)
    assert listing.classes == ("bullet_train", "images_of_cats", "test_tube", "train", "valley")


NAMES = st.sampled_from(
    [case(name) for name in (*TRAIN, *TEST, *WRAPPERS, *LEFTOVERS, "cat", "dog") for case in CASES]
)


@given(st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=2, max_size=6))
def test_no_tree_makes_a_class_of_such_a_name(tmp_path_factory, folders):
    root = fill(tmp_path_factory.mktemp("tree"), *sorted(folders))
    try:
        listing = list_tree(root)
    except ConfigError:
        return
    assert not {name.casefold() for name in listing.classes} & (ODD - {"train"})
