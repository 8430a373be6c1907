import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from voc_layout import VocFolder, annotation, gray

from pipeline.config import ConfigError
from training.transfer.images.voc import absent_classes, read_voc, targets_of
from training.transfer.images.voc_annotation import AnnotationError, read_annotation, usable_boxes

CAT = ("cat", (11, 6, 30, 25), 0)
DOG = ("dog", (1, 1, 60, 40), 0)


@pytest.fixture
def folder(tmp_path):
    """Three images: a cat, a dog and a difficult cat, nothing; all in trainval."""
    voc = VocFolder(tmp_path / "VOC2007")
    voc.add("a", gray(), CAT)
    voc.add("b", gray(), DOG, ("cat", (1, 1, 5, 5), 1))
    voc.add("c", gray())
    voc.list("trainval", "abc")
    for name, flags in {"cat": (1, 0, -1), "dog": (-1, 1, -1)}.items():
        voc.list_class(name, "trainval", dict(zip("abc", flags, strict=True)))
    return voc


def test_inclusive_1_based_pixels_become_0_based_edges(folder):
    first, second, third = read_voc(folder.root, "trainval").images
    assert first.boxes.tolist() == [[10, 5, 30, 25]]
    assert second.boxes.tolist() == [[0, 0, 60, 40], [0, 0, 5, 5]]
    assert (second.labels.tolist(), second.difficult.tolist()) == ([1, 0], [False, True])
    assert third.boxes.shape == (0, 4)
    assert (first.id, first.width, first.height, first.boxes.dtype) == ("a", 60, 40, np.float32)


def test_targets_are_shown_not_shown_and_difficult(folder):
    voc = read_voc(folder.root, "trainval")
    assert voc.classes == ("cat", "dog")
    assert targets_of(voc).tolist() == [[1, 0], [-1, 1], [0, 0]]
    assert voc.problems == {"difficult": 1}
    for path in (folder.root / "ImageSets/Main").glob("*_trainval.txt"):
        path.unlink()
    unlisted = read_voc(folder.root, "trainval")  # Now targets and classes are those of the boxes.
    assert unlisted.listed is None
    assert (unlisted.classes, targets_of(unlisted).tolist()) == (
        voc.classes,
        targets_of(voc).tolist(),
    )


def test_class_files_override_boxes_and_the_difference_is_counted(folder):
    folder.list_class("cat", "trainval", {"a": -1, "b": 0})
    voc = read_voc(folder.root, "trainval")
    assert targets_of(voc)[:, 0].tolist() == [0, -1, 0]
    assert voc.problems["class_file_differs"] == 1
    assert any(note == "1 class_file_differs (a)" for note in voc.notes)


@pytest.mark.parametrize(
    ("thing", "problem", "kept"),
    [
        (("cat", (50, 30, 70, 50), 0), "box_clipped", [[49, 29, 60, 40]]),
        (("cat", (0, 1, 10, 10), 0), "box_clipped", [[0, 0, 10, 10]]),  # Counted from 0.
        (("cat", (70, 1, 80, 10), 0), "box_outside", []),
        (("cat", (10, 10, 10, 20), 0), "zero_area", []),
        (("cat", (20, 10, 10, 20), 0), "zero_area", []),
        (("cow", (1, 1, 10, 10), 0), "unknown_class", []),
        (("cat", ("one", 1, 10, 10), 0), "unreadable_box", []),
        (("cat", ("nan", 1, 10, 10), 0), "unreadable_box", []),
        (("cat", (1, 1, 10, 10), 1), "difficult", [[0, 0, 10, 10]]),
        (("cat", (1.5, 1, 10, 10), 0), None, [[0.5, 0, 10, 10]]),  # As VOC 2011 has some.
    ],
)
def test_odd_objects_are_counted(folder, thing, problem, kept):
    folder.add("c", gray(), thing)
    voc = read_voc(folder.root, "trainval")
    assert voc.images[2].boxes.tolist() == kept
    expected = {"difficult": 1, "class_file_differs": 1} if kept else {"difficult": 1}
    if problem:
        expected[problem] = expected.get(problem, 0) + 1
    assert voc.problems == expected


def test_odd_images_are_counted_and_excluded(folder):
    main = folder.root / "ImageSets/Main/trainval.txt"
    main.write_text("a\nb\nc\na\nlost\nblank\ncut\nwild\n")
    for image_id in ("blank", "cut", "wild", "alone"):
        folder.add(image_id, gray(), CAT)
    (folder.root / "Annotations/blank.xml").unlink()
    (folder.root / "Annotations/wild.xml").write_text("<annotation><object>")
    image = folder.root / "JPEGImages/cut.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    voc = read_voc(folder.root, "trainval")
    assert [one.id for one in voc.images] == ["a", "b", "c"]
    assert voc.problems == {
        "difficult": 1,
        "image_in_no_set": 1,
        "listed_twice": 1,
        "missing_image": 1,
        "missing_annotation": 1,
        "unreadable_annotation": 1,
        "unreadable_image": 1,
    }
    assert "1 image_in_no_set (alone)" in voc.notes


def test_the_size_is_read_from_the_file(folder):
    (folder.root / "Annotations/a.xml").write_text(annotation(600, 400, CAT))
    voc = read_voc(folder.root, "trainval")
    assert (voc.images[0].width, voc.images[0].height) == (60, 40)
    assert voc.problems["size_differs"] == 1


def test_an_absent_class_is_noted(folder):
    folder.list("train", "a")
    voc = read_voc(folder.root, "train")
    assert voc.classes == ("cat", "dog")
    assert absent_classes(voc.images, voc.classes) == ["dog"]
    assert any("no object that is not difficult of: dog" in note for note in voc.notes)


def test_parts_of_an_object_are_not_objects():
    text = annotation(60, 40, CAT).replace(
        "</object>",
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>",
    )
    read = read_annotation(text.encode(), "x")
    assert (read.names, read.corners.tolist()) == (("cat",), [[11, 6, 30, 25]])


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE annotation [<!ENTITY a "aaaa">]>',
        '<!DOCTYPE annotation SYSTEM "file:///etc/passwd">',
    ],
)
def test_document_types_are_refused(folder, head):
    (folder.root / "Annotations/a.xml").write_text(head + annotation(60, 40, CAT))
    with pytest.raises(ConfigError, match="declares a document type"):
        read_voc(folder.root, "trainval")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe<\x00",
        annotation(60, 40, CAT).encode("utf-16"),  # Could hide a document type.
        b"<html></html>",
        b"<annotation>\x00</annotation>",
    ],
)
def test_a_file_that_is_not_an_annotation_is_reported(data):
    with pytest.raises(AnnotationError):
        read_annotation(data, "x")


CORNER = st.integers(-20, 90)


@given(st.lists(st.tuples(CORNER, CORNER, CORNER, CORNER), max_size=5))
def test_every_object_is_a_box_inside_or_counted(corners):
    objects = [("cat", box, 0) for box in corners]
    read = read_annotation(annotation(60, 40, *objects).encode(), "x")
    boxes, problems = usable_boxes(read, ["cat"], (60, 40), "x")
    lost = problems.counts["zero_area"] + problems.counts["box_outside"]
    assert len(boxes.boxes) + lost == len(corners)
    assert (boxes.boxes[:, :2] >= 0).all()
    assert (boxes.boxes[:, 2:] <= [60, 40]).all()
    assert (boxes.boxes[:, 2:] > boxes.boxes[:, :2]).all()


def test_sets_of_several_years_are_joined(folder, tmp_path):
    other = VocFolder(tmp_path / "VOC2012")
    other.add("2008_1", gray(30, 30), ("ape", (1, 1, 9, 9), 0))
    other.list("trainval", ["2008_1"])
    other.list_class("ape", "trainval", {"2008_1": 1})
    voc = read_voc(tmp_path, "07+12")
    assert [one.id for one in voc.images] == ["a", "b", "c", "2008_1"]
    assert voc.classes == ("ape", "cat", "dog")
    assert targets_of(voc).tolist() == [[0, 1, 0], [0, -1, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(ConfigError, match=r"must name years and sets .* 2007, 2012"):
        read_voc(tmp_path, "trainval")


@pytest.mark.parametrize(
    ("lines", "image_set", "message"),
    [
        ("a\n", "nope", r"image set \(=nope\) is not in .*, which has: trainval"),
        ("", "trainval", "lists no image"),
        ("../a\n", "trainval", "which is no name of a file"),
        ("lost\n", "trainval", "has no image that can be used .* 1 missing_image"),
    ],
)
def test_an_unreadable_set_is_refused_in_one_line(folder, lines, image_set, message):
    (folder.root / "ImageSets/Main/trainval.txt").write_text(lines)
    with pytest.raises(ConfigError, match=message) as caught:
        read_voc(folder.root, image_set)
    assert "\n" not in str(caught.value)


def test_other_layouts_and_class_files_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no JPEGImages"):
        read_voc(tmp_path / "empty", "train")
    folder.list_class("cat", "trainval", {"a": 2})
    with pytest.raises(ConfigError, match=r"has the line 'a  2'"):
        read_voc(folder.root, "trainval")


def test_other_formats_are_found_by_their_id(folder):
    (folder.root / "JPEGImages/a.jpg").unlink()
    Image.fromarray(gray()).save(folder.root / "JPEGImages/a.PNG")
    assert read_voc(folder.root, "trainval").images[0].path.name == "a.PNG"
