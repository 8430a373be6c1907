import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from training.transfer.dense.box_ap import Detections, Truth, coco_box_ap, overlaps, voc_box_ap

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
FAR = (80, 80, 90, 90)
NEAR_A = (1, 0, 11, 10)  # 9 of 11 columns in common: 0.818.
HALF_A = (0, 0, 10, 5)  # Exactly 0.5.


def truth(*boxes, labels=None, difficult=None):
    count = len(boxes)
    return Truth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels or [0] * count, np.int64),
        np.array(difficult or [False] * count, bool),
    )


def found(*scored, labels=None):
    """Boxes with scores: (score, box)."""
    return Detections(
        np.array([box for _, box in scored], np.float32).reshape(-1, 4),
        np.array(labels or [0] * len(scored), np.int64),
        np.array([score for score, _ in scored], np.float32),
    )


def voc(truths, given, num_classes=1, **options):
    return voc_box_ap(truths, given, num_classes, **{"definition": "area", **options})


def test_the_overlap_equals_that_of_the_devkit_with_inclusive_pixels():
    # The devkit's 1..10 x 1..10 and 6..15 x 1..10: 5 of 15 columns.
    assert overlaps(np.array([[0, 0, 10, 10.0]]), np.array([[5, 0, 15, 10.0]])) == 1 / 3
    # Its 1..1 is a pixel, of an area of 1.
    assert overlaps(np.array([[0, 0, 1, 1.0]]), np.array([[0, 0, 1, 1.0]])) == 1
    assert overlaps(np.array([[0, 0, 10, 10.0]]), np.array([[10, 0, 20, 10.0]])) == 0


@pytest.mark.parametrize(
    ("truths", "given", "area", "eleven"),
    [
        # Two objects, both found first.
        ([truth(A, B)], [found((0.9, A), (0.8, B), (0.7, C))], 1, 1),
        # The second detection of A is false; B is third: precisions 1 and 2/3.
        (
            [truth(A, B)],
            [found((0.9, A), (0.8, NEAR_A), (0.7, B))],
            (1 + 2 / 3) / 2,
            (6 + 5 * 2 / 3) / 11,
        ),
        # An overlap of exactly one half is enough.
        ([truth(A)], [found((0.9, HALF_A))], 1, 1),
        # Detected in the wrong image.
        ([truth(A), truth()], [found(), found((0.9, A))], 0, 0),
        # Ranks are of all images together: true, false, true.
        ([truth(A), truth(B)], [found((0.9, A), (0.5, FAR)), found((0.4, B))], 5 / 6, 28 / 33),
        # One of four objects found: precision 1 up to recall 1/4, that is at 0, 0.1 and 0.2.
        ([truth(A, B, C, FAR)], [found((0.9, A))], 1 / 4, 3 / 11),
    ],
)
def test_devkit_values_worked_out_by_hand(truths, given, area, eleven):
    np.testing.assert_allclose(voc(truths, given), [area])
    np.testing.assert_allclose(voc(truths, given, definition="11_point"), [eleven])


def test_difficult_boxes_are_neither_missed_nor_false_positives():
    truths = [truth(A, B, difficult=[True, False])]
    np.testing.assert_allclose(voc(truths, [found((0.9, A), (0.8, A), (0.7, B))]), [1])
    np.testing.assert_allclose(voc(truths, [found((0.7, B))]), [1])
    only = [truth(A, difficult=[True])]
    assert math.isnan(voc(only, [found((0.9, A))])[0])
    assert math.isnan(coco_box_ap(only, [found((0.9, A))], 1).ap)


def test_a_detection_next_to_a_matched_box_is_false_in_voc_and_true_in_coco():
    # Both detections overlap most with the first of two nearly equal boxes.
    truths = [truth((0, 0, 100, 100), (0, 0, 100, 96))]
    given = [found((0.9, (0, 0, 100, 100)), (0.8, (0, 0, 100, 99)))]
    np.testing.assert_allclose(voc(truths, given), [1 / 2])
    assert coco_box_ap(truths, given, 1).ap50 == pytest.approx(1)


def test_a_class_without_an_object_is_undefined_and_not_0():
    truths = [truth(A, B, labels=[0, 2])]
    given = [found((0.9, A), (0.8, FAR), (0.7, FAR), labels=[0, 1, 2])]
    np.testing.assert_allclose(voc(truths, given, 3), [1, math.nan, 0])
    coco = coco_box_ap(truths, given, 3)
    np.testing.assert_allclose(coco.classes, [1, math.nan, 0])
    assert (coco.ap, coco.ap50) == (1 / 2, 1 / 2)


def test_coco_averages_over_ten_overlaps():
    # 9 of 11 columns: true at 0.5, 0.55, ... 0.8, seven of the ten.
    coco = coco_box_ap([truth(A)], [found((0.9, NEAR_A))], 1)
    assert (coco.ap, coco.ap50, coco.ap75) == pytest.approx((0.7, 1, 1))


def test_coco_counts_100_detections_per_class_and_image():
    crowd = [(0.9, FAR)] * 100
    late = coco_box_ap([truth(A)], [found(*crowd, (0.5, A))], 1)
    in_time = coco_box_ap([truth(A)], [found(*crowd[1:], (0.5, A))], 1)
    assert (late.ap, in_time.ap) == pytest.approx((0, 1 / 100))


def test_pairs_are_required():
    with pytest.raises(ValueError, match="must be of the same"):
        voc([truth(A)], [])
    with pytest.raises(ValueError, match="hold NaN"):
        coco_box_ap([truth(A)], [found((math.nan, A))], 1)


CORNER = st.integers(0, 20)
SIDE = st.integers(1, 20)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
SCENE = st.lists(
    st.tuples(
        st.lists(st.tuples(BOX, st.integers(0, 2)), max_size=5),
        st.lists(st.tuples(BOX, st.integers(0, 2)), max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def scene_of(drawn, seed):
    """True boxes and detections; half of these are on an object, all scores differ."""
    rng = np.random.default_rng(seed)
    total = sum(len(boxes) for _, boxes in drawn)
    scores = iter(rng.permutation(total + 1) / (total + 1))
    truths, given = [], []
    for objects, boxes in drawn:
        truths.append(truth(*[b for b, _ in objects], labels=[k for _, k in objects]))
        picks = [objects[rng.integers(len(objects))] if objects and rng.random() < 0.5 else b
                 for b in boxes]  # fmt: skip
        scored = [(float(next(scores)), b) for b, _ in picks]
        given.append(found(*scored, labels=[k for _, k in picks]))
    return truths, given


@settings(max_examples=25, deadline=None)
@given(SCENE, st.integers(0, 1000))
def test_coco_values_equal_those_of_pycocotools(drawn, seed):
    truths, given = scene_of(drawn, seed)
    ours = coco_box_ap(truths, given, 3)
    np.testing.assert_allclose(
        [math.nan if v < 0 else v for v in pycoco(truths, given)],
        [ours.ap, ours.ap50, ours.ap75],
        atol=1e-9,
    )


def test_coco_values_equal_those_of_torchmetrics():
    drawn = [([((0, 0, 12, 9), 0), ((5, 5, 20, 30), 1)], [((1, 0, 12, 9), 0)] * 6)] * 3
    truths, given = scene_of(drawn, 3)
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(
        [
            {
                "boxes": torch.from_numpy(g.boxes),
                "labels": torch.from_numpy(g.labels),
                "scores": torch.from_numpy(g.scores),
            }
            for g in given
        ],
        [
            {"boxes": torch.from_numpy(t.boxes), "labels": torch.from_numpy(t.labels)}
            for t in truths
        ],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = metric.compute()
    ours = coco_box_ap(truths, given, 2)
    assert 0 < ours.ap < 1
    assert [ours.ap, ours.ap50, ours.ap75] == pytest.approx(
        [float(theirs[key]) for key in ("map", "map_50", "map_75")], abs=1e-6
    )
    np.testing.assert_allclose(ours.classes, theirs["map_per_class"].numpy(), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(SCENE, st.integers(0, 1000), st.sampled_from(["area", "11_point"]))
def test_voc_values_equal_the_devkit_written_as_loops(drawn, seed, definition):
    truths, given = scene_of(drawn, seed)
    ours = voc_box_ap(truths, given, 3, definition=definition)
    theirs = [devkit(truths, given, label, definition) for label in range(3)]
    np.testing.assert_allclose(ours, theirs)


def devkit(truths, given, label, definition):
    """VOC's evaluation box by box, on its own inclusive 1-based pixels."""
    rows = [
        (float(s), n, b + np.array([1, 1, 0, 0]))
        for n, g in enumerate(given)
        for s, b, k in zip(g.scores, g.boxes, g.labels, strict=True)
        if k == label
    ]
    objects = [t.boxes[t.labels == label] + np.array([1, 1, 0, 0]) for t in truths]
    taken, tp, curve = set(), 0, []
    for rank, (_, n, box) in enumerate(sorted(rows, key=lambda row: -row[0]), start=1):
        best, which = -1.0, None
        for j, other in enumerate(objects[n]):
            w = min(box[2], other[2]) - max(box[0], other[0]) + 1
            h = min(box[3], other[3]) - max(box[1], other[1]) + 1
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            shared = w * h / (sum(areas) - w * h) if w > 0 and h > 0 else 0
            if shared > best:
                best, which = shared, j
        if best >= 0.5 and (n, which) not in taken:
            taken.add((n, which))
            tp += 1
        curve.append((tp, tp / rank))
    total = sum(map(len, objects))
    if not total:
        return math.nan
    levels = [(k, total) for k in range(1, total + 1)]
    levels = levels if definition == "area" else [(k, 10) for k in range(11)]
    return np.mean(
        [max((p for hits, p in curve if hits * of >= k * total), default=0) for k, of in levels]
    )


def pycoco(truths, given):
    """AP, AP50 and AP75 of pycocotools, -1 where undefined."""
    images = [{"id": n + 1} for n in range(len(truths))]
    objects = [
        (n + 1, int(k) + 1, [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])])
        for n, t in enumerate(truths)
        for b, k in zip(t.boxes, t.labels, strict=True)
    ]
    results = [
        {
            "image_id": n + 1,
            "category_id": int(k) + 1,
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": float(s),
        }
        for n, g in enumerate(given)
        for b, k, s in zip(g.boxes, g.labels, g.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": images,
            "categories": [{"id": k} for k in (1, 2, 3)],
            "annotations": [
                {"id": i + 1, "image_id": n, "category_id": k, "bbox": b, "area": b[2] * b[3],
                 "iscrowd": 0}
                for i, (n, k, b) in enumerate(objects)
            ],
            "info": {},
        }  # fmt: skip
        coco.createIndex()
        if not results:
            return (0.0,) * 3 if objects else (-1.0,) * 3
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return tuple(evaluation.stats[:3])
