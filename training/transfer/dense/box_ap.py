"""Average precision of detected boxes, as the VOC devkit and as COCO define it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.transfer.average_precision import (
    Definition,
    best_precision,
    curve_average,
    defined_mean,
    percent,
)

# Shapes: n true boxes of an image, m detected boxes, C classes, T overlap thresholds.


_COCO_OVERLAPS = np.linspace(0.5, 0.95, 10)
_COCO_RECALLS = np.linspace(0.0, 1.0, 101)
_COCO_MOST = 100


@dataclass(frozen=True, slots=True)
class Truth:
    """True boxes of an image: left, top, right, bottom from 0, right and bottom exclusive."""

    boxes: NDArray[np.floating[Any]]
    """(n, 4)."""
    labels: NDArray[np.int64]
    """(n,)."""
    difficult: NDArray[np.bool_]
    """(n,)."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Detected boxes of an image."""

    boxes: NDArray[np.floating[Any]]
    """(m, 4), as in `Truth`."""
    labels: NDArray[np.int64]
    """(m,)."""
    scores: NDArray[np.floating[Any]]
    """(m,), higher is more confident."""


@dataclass(frozen=True, slots=True)
class CocoAp:
    """Average precision as COCO defines it, 0 to 1; NaN where no class has an object."""

    ap: float
    """Mean over IoU thresholds of 0.5, 0.55, ... 0.95."""
    ap50: float
    """AP at an IoU threshold of 0.5."""
    ap75: float
    """AP at an IoU threshold of 0.75."""
    classes: NDArray[np.float64]
    """(C,), `ap` of each class, NaN for one without an object."""


def overlaps(
    boxes: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return the intersection over union of all pairs, float64 (n, m).

    With exclusive right and bottom edges this equals the devkit's overlap, where they are inclusive
    and sides are xmax - xmin + 1.
    """
    a, b = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.prod(np.clip(sides, 0, None), axis=2)
    union = np.prod(a[..., 2:] - a[..., :2], axis=2) + np.prod(b[..., 2:] - b[..., :2], axis=2)
    union = union - common
    shared: NDArray[np.float64] = np.divide(
        common, union, out=np.zeros_like(common), where=union > 0
    )
    return shared


def voc_box_ap(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    num_classes: int,
    *,
    definition: Definition,
    overlap: float = 0.5,
) -> NDArray[np.float64]:
    """Return the average precision of each class by the rules of the VOC devkit.

    Detections of all images are visited from the highest score down, ties in the given order. Each
    is compared with the true box of its image and class that it overlaps most, the first among
    ties. Below the overlap threshold it is a false positive. Otherwise it is a true positive if
    that box is still unmatched; a false positive if it is matched, even where another box would be
    free; and ignored if the box is difficult. Difficult boxes need not be found.

    Args:
        truths: One for each image.
        found: One for each image, in the same order.
        num_classes: C.
        definition: Which average.
        overlap: Lowest IoU of a true positive.

    Returns:
        float64 (C,), 0 to 1, NaN for a class without a box that is not difficult.

    Raises:
        ValueError: The numbers of images differ, or a score is NaN.
    """
    _require_pairs(truths, found)
    averages = np.empty(num_classes, np.float64)
    for label in range(num_classes):
        scores, outcomes, num_positives = [np.empty(0)], [], 0
        for ranked, shared, difficult in _of_class(truths, found, label):
            num_positives += int((~difficult).sum())
            scores.append(ranked)
            outcomes += _devkit_matches(shared, difficult, overlap)
        # Each image's boxes are sorted, and this sort is stable: equal scores keep their order.
        order = np.argsort(-np.concatenate(scores), kind="stable")
        matches = np.array(outcomes, np.int64)[order]
        counted = matches[matches >= 0]
        hits, shown = np.cumsum(counted), np.arange(1, len(counted) + 1)
        averages[label] = curve_average(hits, shown, num_positives, definition)
    return averages


def coco_box_ap(truths: Sequence[Truth], found: Sequence[Detections], num_classes: int) -> CocoAp:
    """Return average precision as COCO defines it: all areas, 100 detections per image and class.

    A detection matches the unmatched true box that it overlaps most. COCO has no difficult boxes;
    here a false positive that overlaps a difficult box enough is ignored. The precision is taken at
    recalls of 0, 0.01, ... 1.

    Args:
        truths: One for each image.
        found: One for each image, in the same order.
        num_classes: C.

    Raises:
        ValueError: The numbers of images differ, or a score is NaN.
    """
    _require_pairs(truths, found)
    table = np.empty((num_classes, len(_COCO_OVERLAPS)), np.float64)
    for label in range(num_classes):
        scores, outcomes, num_positives = [np.empty(0)], [], 0
        for ranked, shared, difficult in _of_class(truths, found, label):
            num_positives += int((~difficult).sum())
            scores.append(ranked[:_COCO_MOST])
            outcomes.append(_coco_matches(shared[:_COCO_MOST], difficult))
        ranks = np.argsort(-np.concatenate(scores), kind="stable")
        columns = np.concatenate([*outcomes, np.empty((0, len(_COCO_OVERLAPS)), np.int64)])[ranks].T
        table[label] = [_coco_average(column, num_positives) for column in columns]
    at = {t: defined_mean(table[:, k]) for k, t in enumerate(_COCO_OVERLAPS.round(2).tolist())}
    classes = table.mean(axis=1)
    return CocoAp(defined_mean(classes), at[0.5], at[0.75], classes)


def _of_class(
    truths: Sequence[Truth], found: Sequence[Detections], label: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield of each image the scores (m,), best first, the IoUs (m, n), and the difficult (n,)."""
    for truth, given in zip(truths, found, strict=True):
        mine, theirs = truth.labels == label, given.labels == label
        scores = given.scores[theirs]
        order = np.argsort(-scores, kind="stable")
        shared = overlaps(given.boxes[theirs][order], truth.boxes[mine])
        yield scores[order], shared, truth.difficult[mine]


def _require_pairs(truths: Sequence[Truth], found: Sequence[Detections]) -> None:
    if len(truths) != len(found):
        raise ValueError(
            f"truths (of {len(truths)} images) and found (of {len(found)}) must be of the same."
        )
    if any(np.isnan(given.scores).any() for given in found):
        raise ValueError("scores of found boxes hold NaN, which has no rank.")


def _devkit_matches(
    shared: NDArray[np.float64], difficult: NDArray[np.bool_], overlap: float
) -> list[int]:
    """Match the detections of an image, best first: 1 true, 0 false positive, -1 ignored."""
    taken, outcomes = np.zeros(len(difficult), np.bool_), []
    for row in shared:
        best = int(row.argmax()) if len(row) else 0
        if not len(row) or row[best] < overlap:
            outcomes.append(0)
        elif difficult[best]:
            outcomes.append(-1)
        else:
            outcomes.append(0 if taken[best] else 1)
            taken[best] = True
    return outcomes


def _coco_matches(shared: NDArray[np.float64], difficult: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Match the detections of an image, best first: int64 (m, T), as `_devkit_matches`."""
    thresholds = np.minimum(_COCO_OVERLAPS, 1 - 1e-10)
    rows = np.arange(len(thresholds))
    taken = np.zeros((len(thresholds), len(difficult)), np.bool_)
    outcomes = np.zeros((len(shared), len(thresholds)), np.int64)
    for m, row in enumerate(shared if len(difficult) else ()):
        free = np.where(taken | difficult, -1.0, row)
        # The last among ties, as in COCO's own evaluator.
        best = free.shape[1] - 1 - free[:, ::-1].argmax(axis=1)
        true = free[rows, best] >= thresholds
        taken[rows[true], best[true]] = True
        spared = (np.where(difficult, row, -1.0).max() >= thresholds) & ~true
        outcomes[m] = true.astype(np.int64) - spared
    return outcomes


def _coco_average(ranked: NDArray[np.int64], num_positives: int) -> float:
    if not num_positives:
        return float("nan")
    counted = ranked[ranked >= 0]
    hits, shown = np.cumsum(counted), np.arange(1, len(counted) + 1)
    # In floats, as COCO's own evaluator compares them.
    reached = np.searchsorted(hits / num_positives, _COCO_RECALLS, side="left")
    return float(np.append(best_precision(hits, shown), 0.0)[reached].mean())


@dataclass(frozen=True, slots=True)
class BoxScores:
    """Average precision by three definitions, 0 to 1, NaN for a class without an object."""

    eleven_point: NDArray[np.float64]
    """(C,), as in VOC 2007."""
    area: NDArray[np.float64]
    """(C,), as in VOC 2010."""
    coco: CocoAp


def score_boxes(
    truths: Sequence[Truth], found: Sequence[Detections], num_classes: int
) -> BoxScores:
    """Score the detections of all images by all definitions."""
    return BoxScores(
        voc_box_ap(truths, found, num_classes, definition="11_point"),
        voc_box_ap(truths, found, num_classes, definition="area"),
        coco_box_ap(truths, found, num_classes),
    )


def scores_in_json(seeds: Sequence[BoxScores], classes: Sequence[str]) -> dict[str, Any]:
    """Return the mean AP of every seed, and of every class the mean over seeds, percent or None."""
    by_class = {
        name: {
            "ap_11_point": percent(np.mean([one.eleven_point[c] for one in seeds])),
            "ap_area": percent(np.mean([one.area[c] for one in seeds])),
            "coco_ap": percent(np.mean([one.coco.classes[c] for one in seeds])),
        }
        for c, name in enumerate(classes)
    }
    return {
        "ap_11_point": [percent(defined_mean(one.eleven_point)) for one in seeds],
        "ap_area": [percent(defined_mean(one.area)) for one in seeds],
        "coco_ap": [percent(one.coco.ap) for one in seeds],
        "coco_ap50": [percent(one.coco.ap50) for one in seeds],
        "coco_ap75": [percent(one.coco.ap75) for one in seeds],
        "classes": by_class,
        "undefined": [name for name, aps in by_class.items() if aps["ap_11_point"] is None],
    }
