import io
import json
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import contents, index, picture, tar_of
from rich.console import Console

from cluster.data import get_data
from pipeline.config import ConfigError
from pipeline.ingest.labelled import Packed, pack
from pipeline.shards.store import Store
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule
from training.transfer.images.voc_annotation import read_shown, read_voc_shards

ANIMALS = Path(__file__).parents[3] / "shared/data/voc_animals/VOCdevkit/VOC2007"
OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"""


def annotation(*things):
    """The XML of an image with (class, difficult) pairs."""
    return f"<annotation>{''.join(OBJECT.format(*thing) for thing in things)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Six images to learn from and three to test on; one annotation and one image are missing."""
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    shown = {
        "01": [("cat", 0)],
        "02": [("dog", 0), ("cat", 1)],
        "03": [("dog", 1), ("dog", 0)],
        "04": [],
        "05": [("dog", 1)],
        "06": [("cat", 0), ("cat", 0)],
        "11": [("cat", 0), ("dog", 0)],
        "12": [("dog", 1)],
        "13": [("cat", 0)],
    }
    for image_id, things in shown.items():
        (folder / f"JPEGImages/{image_id}.jpg").write_bytes(picture(int(image_id)))
        (folder / f"Annotations/{image_id}.xml").write_text(annotation(*things))
    (folder / "Annotations/06.xml").unlink()
    (folder / "JPEGImages/13.jpg").unlink()
    (folder / "JPEGImages/helmet.jpg").write_bytes(picture(99))
    main = folder / "ImageSets/Main"
    main.joinpath("trainval.txt").write_text("\n".join(n for n in shown if n < "10"))
    main.joinpath("test.txt").write_text("\n".join(n for n in shown if n > "10"))
    return folder


def task_of(location, folder, **rule):
    options = TaskOptions(rule=SplitRule(**rule))
    return open_task(location, options=options, pretrain=None, folder=folder)


def shown_of(side):
    """Targets by the id of the image."""
    about = (json.loads(side.store.members(int(i))["json"]) for i in side.sample_ids)
    pairs = zip(about, side.targets.tolist(), strict=True)
    return {sample["id"]: targets for sample, targets in pairs}


def test_a_voc_layout_is_a_multi_label_task(voc, tmp_path):
    task = task_of(voc, tmp_path / "out")
    assert task.classes == ("cat", "dog")
    assert task.train.is_multi_label
    assert shown_of(task.train) == {
        "01": [1, 0],
        "02": [-1, 1],
        "03": [0, 1],
        "04": [0, 0],
        "05": [0, -1],
    }
    assert shown_of(task.test) == {"11": [1, 1], "12": [0, -1]}
    assert task.overlap == {"train/test": 0}
    notes = "\n".join(task.notes)
    for note in ("1 missing_annotation (06)", "1 missing_image (13)", "image_in_no_set (helmet)"):
        assert note in notes


def test_class_files_override_boxes(voc, tmp_path):
    lines = [f"{n:02} {flag}" for n, flag in enumerate((1, -1, 0, -1, 1), 1)]
    (voc / "ImageSets/Main/dog_trainval.txt").write_text("\n".join(lines))
    (voc / "ImageSets/Main/cat_trainval.txt").write_text("01 1\n02 1")
    found = shown_of(task_of(voc, tmp_path / "out").train)
    assert [row[1] for row in found.values()] == [1, 0, -1, 0, 1]
    assert found["02"] == [1, 0]


def test_packed_annotations_are_those_of_the_folder(voc, tmp_path):
    task = task_of(voc, tmp_path / "out")
    for side in (task.train, task.test):
        for number in range(side.store.manifest.num_samples):
            members = side.store.members(number)
            image_id = json.loads(members["json"])["id"]
            assert members["xml"] == (voc / f"Annotations/{image_id}.xml").read_bytes()
            assert members["jpg"] == (voc / f"JPEGImages/{image_id}.jpg").read_bytes()


def test_shards_with_the_xml_alone_give_the_same_targets(voc, tmp_path):
    task = task_of(voc, tmp_path / "out")
    for side in ("train", "test"):
        store = getattr(task, side).store
        members = [store.members(number) for number in range(store.manifest.num_samples)]
        rows = [(f"{n}.{e}", m[e]) for n, m in enumerate(members) for e in ("jpg", "xml")]
        tar_of(rows, tmp_path / f"{side}.tar")
        index([tmp_path / f"{side}.tar"], tmp_path / "foreign" / side)
    again = task_of(tmp_path / "foreign", tmp_path)
    assert again.classes == task.classes
    for side in ("train", "test"):
        assert (getattr(again, side).targets == getattr(task, side).targets).all()


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"json": b'{"shown": {"cat": 1, "dog": -1}}'}, {"cat": 1, "dog": -1}),
        ({"json": b'{"shown": {"cat": 2}}'}, None),  # No such target.
        ({"json": b'{"objects": [{"name": "cat"}]}'}, {"cat": 1}),
        ({"json": b'{"objects": [{"name": "cat", "difficult": 1}]}'}, {"cat": -1}),
        ({"json": b'{"objects": []}'}, {}),
        ({"json": b'{"objects": [{"box": 1}]}'}, None),
        ({"xml": annotation(("cat", 1), ("cat", 0)).encode()}, {"cat": 1}),
        ({"xml": annotation().encode(), "json": b"[1]"}, {}),
        ({"xml": b"<annotation"}, None),
        ({"json": b"{broken"}, None),
        ({}, None),
    ],
)
def test_what_a_sample_shows(members, wanted):
    assert read_shown(members, "0") == wanted


def test_samples_without_annotation_are_excluded_and_counted(tmp_path):
    shown = [{"shown": {"cat": 1}}, {}, {"shown": {"dog": 1}}, {"shown": {}}]
    images = [Packed(f"k{n}", picture(n), about=shown[n % 4]) for n in range(20)]
    pack(images, tmp_path / "set", ("cat", "dog"))
    task = task_of(tmp_path / "set", tmp_path)
    used = [*task.train.sample_ids, *task.test.sample_ids]
    assert sorted(used) == [n for n in range(20) if n % 4 != 1]
    assert "5 images have no label" in task.notes
    limited = task_of(tmp_path / "set", tmp_path, max_train=3, max_test=2)
    assert (len(limited.train.targets), len(limited.test.targets)) == (3, 2)
    assert set(limited.train.sample_ids) <= set(task.train.sample_ids)


def test_a_class_missing_from_the_manifest_is_refused(tmp_path):
    pack([Packed("k", picture(0), about={"shown": {"cow": 1}})], tmp_path, ("cat", "dog"))
    with pytest.raises(ConfigError, match=r"class \(=cow\) of an annotation is not among"):
        read_voc_shards(Store(tmp_path), ("cat", "dog"))


def test_single_label_beside_multi_label_is_refused(tmp_path):
    pack([Packed("k", picture(0), 1)], tmp_path / "train", ("cat", "dog"))
    about = {"shown": {"cat": 1}}
    pack([Packed("k", picture(1), about=about)], tmp_path / "test", ("cat", "dog"))
    with pytest.raises(ConfigError, match="pack both sides alike"):
        task_of(tmp_path, tmp_path)


def test_the_fetched_set_equals_that_of_the_folder(voc, tmp_path):
    console = Console(file=io.StringIO())
    get_data("voc2007", tmp_path / "fetched", console, source=tmp_path)
    one, other = task_of(tmp_path / "fetched", tmp_path), task_of(voc, tmp_path / "out")
    for side in ("train", "test"):
        assert shown_of(getattr(one, side)) == shown_of(getattr(other, side))
    assert "missing_annotation" in console.file.getvalue()


@pytest.mark.skipif(not ANIMALS.exists(), reason="needs the VOC animals")
def test_the_voc_animals(tmp_path):
    task = task_of(ANIMALS, tmp_path)
    assert task.classes == ("cat", "cow", "dog", "horse", "sheep")
    assert (len(task.train.targets), len(task.test.targets)) == (320, 180)
    assert task.overlap == {"train/test": 0}
    for side, name in ((task.train, "trainval"), (task.test, "test")):
        for column, animal in enumerate(task.classes):
            lines = (ANIMALS / f"ImageSets/Main/{animal}_{name}.txt").read_text().splitlines()
            expected = {line.split()[0]: line.split()[1] for line in lines}
            found = {k: row[column] for k, row in shown_of(side).items()}
            assert {k: {1: "1", 0: "-1", -1: "0"}[v] for k, v in found.items()} == expected
    before = contents(tmp_path)
    assert (task_of(ANIMALS, tmp_path).train.targets == task.train.targets).all()
    assert contents(tmp_path) == before
    assert np.unique(task.train.targets).tolist() == [0, 1]
