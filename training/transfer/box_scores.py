"""What is said of the boxes that a detector found, in figures and in JSON."""

# Shapes: C classes.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.transfer.average_precision import defined_mean
from training.transfer.box_ap import CocoAp, Found, Truth, coco_box_ap, voc_box_ap


@dataclass(frozen=True, slots=True)
class BoxScores:
    """Average precision by three definitions, 0 to 1, NaN for a class without an object."""

    eleven_point: NDArray[np.float64]
    """(C,), that of VOC 2007."""
    area: NDArray[np.float64]
    """(C,), that of VOC 2010."""
    coco: CocoAp


def score_boxes(truths: Sequence[Truth], found: Sequence[Found], num_classes: int) -> BoxScores:
    """Judge the boxes of all images by all definitions."""
    return BoxScores(
        voc_box_ap(truths, found, num_classes, definition="11_point"),
        voc_box_ap(truths, found, num_classes, definition="area"),
        coco_box_ap(truths, found, num_classes),
    )


def scores_in_json(seeds: Sequence[BoxScores], classes: Sequence[str]) -> dict[str, Any]:
    """Return the means of every seed, and of every class its mean over the seeds, percent.

    What is undefined is None: JSON has no NaN.
    """
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


def percent(share: float | np.floating[Any]) -> float | None:
    """Return a share as a percentage, None where it is NaN."""
    return None if np.isnan(share) else 100 * float(share)
