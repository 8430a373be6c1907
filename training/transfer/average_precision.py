"""Average precision, by the definition that is asked for; undefined (NaN) without a positive."""

# Shapes: N images, C classes, K points of a precision-recall curve.

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Definition = Literal["area", "11_point"]
"""Both take for the precision at a recall the best at that recall or a higher one. area: the area
under that curve (VOC 2010 and later). 11_point: its mean at recalls of 0, 0.1, ... 1 (VOC 2007)."""

DEFINITIONS: dict[Definition, str] = {
    "area": "area under the interpolated precision-recall curve (VOC 2010 and later)",
    "11_point": "interpolated precision at recalls of 0, 0.1, ... 1, averaged (VOC 2007)",
}
"""In words, for the metric of a result."""


def average_precision(
    scores: NDArray[np.floating[Any]],
    positives: NDArray[np.bool_],
    *,
    definition: Definition,
    ignore: NDArray[np.bool_] | None = None,
) -> float:
    """Say how well scores rank the positives first, 0 to 1.

    Equal scores are one threshold: all of them are shown at once, so that the result does not
    depend on the order of the images.

    Args:
        scores: (N,), higher where the class is more likely shown.
        positives: (N,), whether it is shown.
        definition: Of the average.
        ignore: (N,), images that count neither as shown nor as not shown.

    Returns:
        NaN where there is no positive.

    Raises:
        ValueError: The lengths differ, or a score is NaN.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, np.bool_)
    if scores.ndim != 1 or scores.shape != positives.shape:
        raise ValueError(
            f"scores (of shape {scores.shape}) and positives (of shape {positives.shape}) must "
            "both be (N,)."
        )
    if ignore is not None:
        scores, positives = scores[~np.asarray(ignore)], positives[~np.asarray(ignore)]
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank; look at what computed them.")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positives[order])
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    shown = np.flatnonzero(last_of_equals) + 1
    return curve_average(hits[shown - 1], shown, int(positives.sum()), definition)


def average_precisions(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], *, definition: Definition
) -> NDArray[np.float64]:
    """Return the average precision of each class, float64 (C,), NaN for one without a positive.

    Args:
        scores: (N, C).
        targets: (N, C), 1 shown, 0 not shown, -1 difficult: ignored for that class.
        definition: Of the average.
    """
    return np.array(
        [
            average_precision(
                scores[:, c],
                targets[:, c] == 1,
                definition=definition,
                ignore=targets[:, c] == -1,
            )
            for c in range(targets.shape[1])
        ],
        np.float64,
    )


def mean_average_precision(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], *, definition: Definition
) -> float:
    """Average over the classes that have a positive; NaN where none has. See above."""
    return defined_mean(average_precisions(scores, targets, definition=definition))


def defined_mean(values: NDArray[np.float64]) -> float:
    """Average the values that are defined; NaN where none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


def curve_average(
    hits: NDArray[Any],
    shown: NDArray[np.integer[Any]],
    num_positives: int,
    definition: Definition,
) -> float:
    """Average the precision of a curve, see `Definition`.

    Args:
        hits: (K,), positives among what is shown at each threshold, rising.
        shown: (K,), how much is shown there, rising.
        num_positives: In all.
        definition: Of the average.

    Returns:
        0 to 1, or NaN where `num_positives` is 0.
    """
    if not num_positives:
        return float("nan")
    best = best_precision(hits, shown)
    if definition == "area":
        gained = np.diff(hits, prepend=0)
        return float((gained * best).sum() / num_positives)
    # Recall >= k / 10 in integers: as floats, 3 of 10 would not reach 3 * 0.1.
    reached = np.searchsorted(hits * 10, np.arange(11) * num_positives, side="left")
    return float(np.append(best, 0.0)[reached].mean())


def best_precision(hits: NDArray[Any], shown: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the best precision at each threshold or a lower one, float64 (K,)."""
    precision = hits / np.maximum(shown, 1)
    best: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return best
