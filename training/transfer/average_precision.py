"""Average precision by either VOC definition; undefined (NaN) without a positive."""

# Shapes: N images, C classes, K points of a precision-recall curve.

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Definition = Literal["area", "11_point"]
"""Both interpolate: the precision at a recall is the best at that recall or higher. area: area
under that curve (VOC 2010 and later). 11_point: its mean at recalls of 0, 0.1, ... (VOC 2007)."""

DEFINITIONS: dict[Definition, str] = {
    "area": "area under the interpolated precision-recall curve (VOC 2010 and later)",
    "11_point": "interpolated precision at recalls of 0, 0.1, ... 1, averaged (VOC 2007)",
}
"""Wording for the metric of a result."""


def average_precision(
    scores: NDArray[np.floating[Any]],
    positives: NDArray[np.bool_],
    *,
    definition: Definition,
    ignore: NDArray[np.bool_] | None = None,
) -> float:
    """Measure how well scores rank the positives first, 0 to 1.

    Tied scores share one threshold, so the result does not depend on the order of the images.

    Args:
        scores: (N,), higher where the class is more likely shown.
        positives: (N,), whether the class is shown.
        definition: Which average.
        ignore: (N,), images that count neither as positive nor as negative.

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
    is_last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    shown = np.flatnonzero(is_last_of_tie) + 1
    return curve_average(hits[shown - 1], shown, int(positives.sum()), definition)


def average_precisions(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], *, definition: Definition
) -> NDArray[np.float64]:
    """Return the average precision of each class, float64 (C,), NaN for one without a positive.

    Args:
        scores: (N, C).
        targets: (N, C), 1 shown, 0 not shown, -1 difficult: ignored for that class.
        definition: Which average.
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


def defined_mean(values: NDArray[np.float64]) -> float:
    """Average the values that are not NaN; NaN where all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def percent(share: float | np.floating[Any]) -> float | None:
    """Return a share as a percentage, None where it is NaN: JSON has no NaN."""
    return None if np.isnan(share) else 100 * float(share)


def curve_average(
    hits: NDArray[Any],
    shown: NDArray[np.integer[Any]],
    num_positives: int,
    definition: Definition,
) -> float:
    """Average the precision over a precision-recall curve, see `Definition`.

    Args:
        hits: (K,), true positives at each threshold, ascending.
        shown: (K,), predictions at each threshold, ascending.
        num_positives: Number of positives in all.
        definition: Which average.

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
    """Return the best precision at each threshold or a lower one (interpolated), float64 (K,)."""
    precision = hits / np.maximum(shown, 1)
    best: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return best
