"""One rule for EXIF orientation: every labelled image is upright, whatever its format."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from voc_layout import VocFolder, annotation

from pipeline.config import parse
from pipeline.ingest.labelled import Packed, content_key, orientation_of, store_image
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.dense.masks import read_mask, read_masked
from training.transfer.dense.segmentation import SegmentationConfig, run_segmentation
from training.transfer.dense.train import upright_files
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule
from training.transfer.images.voc import read_voc
from training.transfer.job import NamedTrunk, Setting

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
OPTIONS = {"WEBP": {"quality": 95}, "JPEG": {"quality": 100, "subsampling": 0}}
HEIGHT, WIDTH = 24, 40
BOX = (5, 3, 15, 9)  # left, top, right, bottom of the upright picture, the last two exclusive.


def shown(height=HEIGHT, width=WIDTH, box=BOX):
    """An upright picture: a red rectangle on gray."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (230, 30, 30)
    return pixels


def stored(pixels, orientation):
    """Lay pixels out as a camera does that writes this orientation."""
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if orientation >= 5 else pixels)


def encode(pixels, kind, orientation):
    exif, sink = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(stored(pixels, orientation)).save(
        sink, kind, exif=exif, **OPTIONS.get(kind, {})
    )
    return sink.getvalue()


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_stored_is_upright(kind, orientation):
    data = encode(shown(), kind, orientation)
    with Image.open(io.BytesIO(data)) as image:  # The oracle of this test's own layout.
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert np.abs(upright - shown())[6:8, 8:12].max() < 30
    one = store_image(Packed("k", data))
    assert (one.height, one.width) == (HEIGHT, WIDTH)
    # A lossy file is decoded by another library here; a wrong turn differs by 100 and more.
    assert np.abs(decoded(one.data) - upright).mean() < 2
    assert (one.problem == "orientation") == (orientation != 1)
    if orientation == 1 and kind in ("JPEG", "PNG", "WEBP"):
        assert one.data == data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_tag_that_is_not_sound_turns_nothing(kind):
    data = encode(shown(), kind, 9)
    assert orientation_of(data) == 1
    assert store_image(Packed("k", data)).data == data


def test_a_tree_is_upright_and_the_notes_count_it(tmp_path):
    for number, kind in enumerate(FORMATS):
        for place, name in enumerate(("cat", "dog")):
            path = tmp_path / "tree" / name / f"{number}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = shown(box=(5 + number, 3, 15 + number, 9 + place))
            path.write_bytes(encode(pixels, kind, 6))
    options = TaskOptions(rule=SplitRule(folds=1))
    task = open_task(tmp_path / "tree", options=options, pretrain=None, folder=tmp_path / "out")
    store = task.train.store
    members = [store.members(row) for row in range(len(FORMATS) * 2)]
    sizes = {(json.loads(m["json"])["height"], json.loads(m["json"])["width"]) for m in members}
    assert sizes == {(HEIGHT, WIDTH)}
    keys = {content_key(path.read_bytes()) for path in (tmp_path / "tree").rglob("*.*")}
    assert set(store.keys()) == keys  # Those of the files, so that a split by hash stays.
    assert (
        "10 images are stored anew as PNG: turned upright as their EXIF orientation says "
        "(cat/0.jpeg)" in task.notes
    )


@pytest.fixture
def voc(tmp_path):
    """A function (orientation, is_unturned) that makes a VOC folder of one turned image."""

    def make(orientation, *, is_unturned):
        folder = VocFolder(tmp_path / f"{orientation}-{is_unturned}")
        layout = stored(shown(), orientation)
        made_on = layout if is_unturned else shown()
        rows, columns = np.nonzero(made_on[..., 0] > 200)
        box = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        (folder.root / "JPEGImages" / "a.png").write_bytes(encode(shown(), "PNG", orientation))
        text = annotation(made_on.shape[1], made_on.shape[0], ("cat", box, 0))
        (folder.root / "Annotations" / "a.xml").write_text(text)
        folder.add_mask("a", (made_on[..., 0] > 200).astype(np.uint8))
        folder.list("train", ["a"])
        folder.list("train", ["a"], task="Segmentation")
        folder.list_class("cat", "train", {"a": 1})
        return folder.root

    return make


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("is_unturned", [False, True])
def test_boxes_and_masks_lie_on_the_upright_pixels(voc, orientation, is_unturned, tmp_path):
    root = voc(orientation, is_unturned=is_unturned)
    counts = {"turned_upright": 1} | ({"annotated_unturned": 1} if is_unturned else {})
    boxed, masked = read_voc(root, "train"), read_masked(root, "train")
    assert boxed.images[0].boxes.tolist() == [list(BOX)]
    assert boxed.problems == masked.problems == counts
    mask = read_mask(masked.images[0], 2)
    for image in (boxed.images[0], masked.images[0]):
        assert (image.height, image.width) == (HEIGHT, WIDTH)
        (copy,) = upright_files([image], tmp_path / "upright")
        pixels = decoded(copy.path.read_bytes())
        assert (pixels == shown()).all()
        assert ((pixels[..., 0] > 200) == (mask == 1)).all()


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_annotation_that_fits_both_was_made_on_the_upright_picture(voc, orientation):
    root = voc(orientation, is_unturned=False)
    found = read_voc(root, "train")
    assert found.images[0].boxes.tolist() == [list(BOX)]
    assert found.problems == {"turned_upright": 1}
    mask = read_mask(read_masked(root, "train").images[0], 2)
    assert (mask == (shown()[..., 0] > 200)).all()


def test_a_job_on_turned_images_runs_and_counts_them(voc, tmp_path):
    root = voc(6, is_unturned=True)
    raw = {"name": "segmentation", "voc": str(root), "train_set": "train", "test_set": "train"}
    raw |= {"image_px": 32, "long_px": 64, "batch": 2, "head_width": 8, "max_steps": 2}
    job = parse(SegmentationConfig, raw, "test")
    setting = Setting(None, torch.device("cpu"), 64, (0,), 8, 1, "fp32", tmp_path / "transfer")
    build = lambda seed: build_trunk(TrunkConfig(name="small"), use="transfer", view_px=64)  # noqa: E731
    (score,) = run_segmentation(
        job, setting, NamedTrunk("random", "r", build, draws_weights=True), lambda *_: None
    )
    counts = {"turned_upright": 1, "annotated_unturned": 1}
    assert score.details["problems"] == {"train": counts, "test": counts}
