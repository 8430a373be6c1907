import io
import json
import re

import numpy as np
import pytest
from foreign_shards import contents, index, picture, tar_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed, content_key, pack
from pipeline.shards.store import Store
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import Contents, SplitRule, contents_of, count_shared


def task_of(location, folder, *, pretrain=None, **rule):
    options = TaskOptions(rule=SplitRule(**{"folds": 1, **rule}))
    return open_task(location, options=options, pretrain=pretrain, folder=folder)


def tree_of(root, classes, *, first=0):
    """Write numbered pictures into a folder for each class; {"a": 3} makes a/0.jpg to a/2.jpg."""
    number = first
    for name, count in classes.items():
        for row in range(count):
            path = root / name / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
            number += 1
    return root


def files_of(side):
    """Source paths of the packed images of a side."""
    members = (side.store.members(int(i)) for i in side.sample_ids)
    return [json.loads(member["json"])["source"] for member in members]


def counted(task):
    """Number of images that the notes account for."""
    counts = [re.match(r"(\d+) (images|files) (?!.*stored anew)", note) for note in task.notes]
    return sum(int(match[1]) for match in counts if match)


def test_a_tree_is_split_like_its_shards(tmp_path, make_shards):
    from pipeline.ingest.config import ShardConfig

    tree = tree_of(tmp_path / "tree", {"a": 12, "b": 12})
    make_shards(tree, tmp_path / "crawl", ShardConfig(min_side=8))
    packed, crawled = (task_of(place, tmp_path) for place in (tree, tmp_path / "crawl"))
    for side in ("train", "test"):
        keys = [
            sorted(one.store.keys()[i] for i in one.sample_ids)
            for one in (getattr(packed, side), getattr(crawled, side))
        ]
        assert keys[0] == keys[1]
    assert packed.classes == crawled.classes == ("a", "b")
    assert packed.overlap == {"train/test": 0}


def test_every_file_of_a_tree_is_on_one_side_or_in_the_notes(tmp_path):
    tree = tree_of(tmp_path / "tree", {"a": 9, "b": 9, "c": 1})
    (tree / "a" / "copy.jpg").write_bytes((tree / "a" / "0.jpg").read_bytes())
    (tree / "b" / "broken.jpg").write_bytes(picture(0)[:-100])
    (tree / "b" / "notes.txt").write_text("shot in May")
    (tree / "b" / "deep").mkdir()
    (tree / "b" / "deep" / "d.JPG").write_bytes(picture(77))
    (tree / "README").write_text("a licence")
    (tree / ".git").mkdir()
    task = task_of(tree, tmp_path, train_per_class=4)
    used = files_of(task.train) + files_of(task.test)
    assert len(set(used)) == len(used)
    assert "b/deep/d.JPG" in used or "are more than the limits allow" in str(task.notes)
    everything = [path for path in tree.rglob("*") if path.is_file()]
    assert len(used) + counted(task) == len(everything) == 24
    for note in (
        "1 files outside of the classes (README)",
        "1 images can not be used: not_image (b/notes.txt)",
        "1 images can not be used: truncated (b/broken.jpg)",
        "1 images are copies of another",
        "1 images are of classes with too few images on a side: c",
    ):
        assert note in task.notes


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_split_folders_are_the_split(tmp_path, name):
    tree = tmp_path / "tree"
    tree_of(tree / "train", {"a": 3, "b": 3})
    tree_of(tree / name, {"a": 2, "b": 1}, first=5)  # The first is the last of train.
    task = task_of(tree, tmp_path)
    assert sorted(files_of(task.train)) == [f"train/{c}/{n}.jpg" for c in "ab" for n in range(3)]
    assert sorted(files_of(task.test)) == [f"{name}/a/0.jpg", f"{name}/a/1.jpg", f"{name}/b/0.jpg"]
    assert sorted(task.test.targets) == [0, 0, 1]
    assert task.overlap == {"train/test": 1}
    assert task.train.store is not task.test.store


def test_a_class_may_be_called_train(tmp_path):
    task = task_of(tree_of(tmp_path / "tree", {"train": 9, "ship": 9}), tmp_path)
    assert task.classes == ("ship", "train")
    assert len(task.train.targets) + len(task.test.targets) == 18


def test_classes_on_one_side_only_are_excluded_and_named(tmp_path):
    tree_of(tmp_path / "train", {"a": 3, "b": 3, "c": 2})
    tree_of(tmp_path / "test", {"a": 2, "b": 1, "d": 4}, first=50)
    task = task_of(tmp_path, tmp_path / "folder")
    names = {task.classes[label] for side in (task.train, task.test) for label in side.targets}
    assert names == {"a", "b"}
    assert "6 images are of classes with too few images on a side: c, d" in task.notes


def test_a_set_is_packed_once_and_again_when_it_changes(tmp_path):
    tree = tree_of(tmp_path / "tree", {"a": 9, "b": 9})
    first = task_of(tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    task_of(tree, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    (tree / "a" / "0.jpg").write_bytes(picture(99))
    changed = task_of(tree, tmp_path / "out")
    assert before.items() <= contents(tmp_path / "out").items()  # Under another name.
    assert first.train.store.manifest != changed.train.store.manifest


def test_two_manifests_share_one_numbering_of_classes(tmp_path):
    train = [Packed(f"k{n}", picture(n), n % 2) for n in range(6)]
    test = [Packed(f"t{n}", picture(10 + n), n % 2) for n in range(4)]
    pack(train, tmp_path / "train", ("cat", "dog"))
    pack(test, tmp_path / "test", ("dog", "cat"))
    task = task_of(tmp_path, tmp_path)
    names = {
        k: task.classes[t] for k, t in zip(task.test.sample_ids, task.test.targets, strict=True)
    }
    assert names == {0: "dog", 1: "cat", 2: "dog", 3: "cat"}
    assert task.train.targets.tolist() == [0] * 3 + [1] * 3


def test_limits_hold_for_an_official_split(tmp_path):
    tree_of(tmp_path / "train", {"a": 9, "b": 9})
    tree_of(tmp_path / "test", {"a": 9, "b": 9}, first=50)
    task = task_of(tmp_path, tmp_path / "out", train_per_class=2, max_test=6)
    assert np.bincount(task.train.targets).tolist() == [2, 2]
    assert np.bincount(task.test.targets).tolist() == [3, 3]
    assert "26 images are more than the limits allow" in task.notes


def test_overlap_with_the_pretraining_survives_re_encoding(tmp_path, make_shards):
    from pipeline.ingest.config import ShardConfig

    crawl = tree_of(tmp_path / "crawl", {"x": 8})
    for number in range(3):  # Ingest stores these as JPEG, packing stores them unchanged.
        image = Image.open(io.BytesIO(picture(100 + number, "PNG")))
        image.save(crawl / f"{number}.png")
    make_shards(crawl, tmp_path / "shards", ShardConfig(min_side=8))
    tree_of(tmp_path / "t" / "train", {"a": 3, "b": 2})  # Pictures 0 to 4.
    tree_of(tmp_path / "t" / "test", {"a": 6, "b": 1}, first=4)  # Pictures 4 to 10.
    for number in range(3):
        data = (crawl / f"{number}.png").read_bytes()
        (tmp_path / "t" / "test" / "b" / f"{number}.png").write_bytes(data)
    task = task_of(tmp_path / "t", tmp_path, pretrain=Store(tmp_path / "shards"))
    assert task.overlap == {"train/test": 1, "pretrain/train": 5, "pretrain/test": 4 + 3}


def test_overlap_of_a_set_with_itself_is_all_of_it(shards):
    task = task_of(shards, shards, pretrain=Store(shards))
    sizes = len(task.train.targets), len(task.test.targets)
    assert task.overlap == {"train/test": 0, "pretrain/train": sizes[0], "pretrain/test": sizes[1]}


NUMBERS = st.lists(st.integers(0, 8), max_size=12)


def named(numbers, originals):
    """Contents with numbers as hashes of stored bytes and of source files."""
    names = tuple(None if o is None else f"{o:020x}" for o in originals[: len(numbers)])
    names += (None,) * (len(numbers) - len(names))
    return Contents(np.array(numbers, np.uint64), names)


@given(NUMBERS, NUMBERS, *[st.lists(st.none() | st.integers(0, 8), max_size=12)] * 2)
def test_overlap_is_counted_exactly(ours, theirs, our_originals, their_originals):
    first, second = named(ours, our_originals), named(theirs, their_originals)
    wanted = sum(
        stored in ours or (original is not None and original in first.originals)
        for stored, original in zip(theirs, second.originals, strict=True)
    )
    assert count_shared(first, second) == wanted
    assert count_shared(first, first) == len(ours)


@settings(max_examples=15, deadline=None)
@given(NUMBERS.filter(len), NUMBERS.filter(len))
def test_overlap_is_counted_exactly_in_shards(tmp_path_factory, ours, theirs):
    stores = []
    for numbers in (ours, theirs):
        out = tmp_path_factory.mktemp("set")
        pack([Packed(f"k{row}", picture(n)) for row, n in enumerate(numbers)], out, None)
        stores.append(contents_of(Store(out)))
    assert count_shared(*stores) == sum(number in ours for number in theirs)


def test_third_party_shards_are_split_and_unlabelled_images_noted(tmp_path):
    members = []
    for n in range(30):
        members.append((f"{n:03}.jpg", picture(n)))
        if n % 3:
            members.append((f"{n:03}.cls", str(n % 2).encode()))
    tar_of(members, tmp_path / "one.tar")
    index([tmp_path / "one.tar"], tmp_path / "index")
    task = task_of(tmp_path / "index", tmp_path)
    assert len(task.train.targets) + len(task.test.targets) == 20
    assert "10 images have no label" in task.notes


def test_a_numbered_key_is_not_a_duplicate(tmp_path):
    pack([Packed(f"dog-{n}", picture(n), n % 2) for n in range(20)], tmp_path, ("cat", "dog"))
    task = task_of(tmp_path, tmp_path)
    assert len(task.train.targets) + len(task.test.targets) == 20


def test_unusable_data_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    tree_of(tmp_path / "one class", {"a": 3})
    tree_of(tmp_path / "half" / "train", {"a": 3, "b": 3})
    tree_of(tmp_path / "few", {"a": 2, "b": 1})
    pack([Packed("k", picture(0))], tmp_path / "no classes", None)
    pack([Packed("k", picture(0))], tmp_path / "no labels", ("a", "b"))
    tree_of(tmp_path / "no test" / "train", {"a": 3, "b": 3})
    (tmp_path / "no test" / "test" / "a").mkdir(parents=True)
    for name, text in {
        "nothing": r"is not there; give shards",
        "empty": r"0 folders of classes, a transfer needs at least 2",
        "one class": r"1 folders of classes, a transfer needs at least 2",
        "half": r"has train/ and none of test, testing, val, valid, validation, dev",
        "few": r"of 2 classes have folds \(=2\) training images",
        "no classes": r"has 0 classes, a transfer needs at least 2",
        "no labels": r"has classes, and none of its images has a label",
        "no test": r"0 usable of 0 images",
    }.items():
        with pytest.raises(ConfigError, match=text) as caught:
            task_of(tmp_path / name, tmp_path / "out", folds=2)
        assert "\n" not in str(caught.value)


def test_keys_of_duplicates_name_their_content(tmp_path):
    tree_of(tmp_path / "train", {"a": 2, "b": 2})
    tree_of(tmp_path / "test", {"a": 2, "b": 2})  # The same pictures: each side keeps its own.
    (tmp_path / "test" / "b" / "again.jpg").write_bytes(picture(0))
    task = task_of(tmp_path, tmp_path / "out")
    key = content_key(picture(0))
    assert {key, f"{key}-2"} <= set(task.test.store.keys())
    assert task.overlap == {"train/test": 5}
