"""The permutation set: are there answers that next to no evidence tells apart?"""

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.evidence import ProbeScore
from pipeline.pretext.permutation_set import distances

# Shapes: K permutations, T tiles.


NEAR = 3
"""Permutations of nine tiles that differ in at most so many places are near."""


def probe_codes(perms: NDArray[np.int64]) -> ProbeScore:
    """Find permutations that nearly equal another one.

    Two answers that differ in two tiles are told apart by those two alone: a network that knows all
    others is still right half of the time, and the accuracy says little. Every member is looked at,
    so there is no interval.

    Args:
        perms: int64 (K, T), at least two.

    Returns:
        Score: the share of permutations with another one at distance `near` or less, 3 for nine
        tiles, a third of the tiles for others. `min_distance`; `pairs`: how many are near.
    """
    near = perms.shape[1] * NEAR // 9
    nearest = np.array([_nearest(perms, k) for k in range(len(perms))])
    share = float((nearest <= near).mean())
    found = distances(perms)
    detail = {
        "near": float(near),
        "min_distance": float(found.min),
        "pairs": float(sum(found.histogram[: near + 1])),
    }
    return ProbeScore(share, share, share, len(perms), detail)


def _nearest(perms: NDArray[np.int64], k: int) -> int:
    apart = (perms != perms[k]).sum(axis=1)
    apart[k] = perms.shape[1] + 1
    return int(apart.min())
