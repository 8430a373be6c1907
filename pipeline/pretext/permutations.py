"""Permutation sets for jigsaw puzzles: seeded, far apart, cached."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.pretext.jigsaw import JigsawConfig

_MAX_ENUMERATED = 9  # 9! = 362,880 rows; above, a sample of that many stands for all.


def permutations_of(config: JigsawConfig) -> NDArray[np.int64]:
    """Return the permutation set of a puzzle, int64 (num_permutations, num_tiles)."""
    return max_min_hamming_set(
        config.num_tiles, config.num_permutations, seed=config.permutation_seed
    )


@dataclass(frozen=True, slots=True)
class Distances:
    """Hamming distances over all pairs of a set."""

    min: int
    mean: float
    histogram: tuple[int, ...]
    """Pairs at distance 0..T."""


def max_min_hamming_set(num_tiles: int, size: int, *, seed: int) -> NDArray[np.int64]:
    """Pick permutations greedily: the largest minimum distance first, ties by the largest sum.

    The maximal mean distance of Noroozi and Favaro 2016 (algorithm 1) lets pairs at distance 2
    into the set; the minimum is what keeps two answers apart, and the sum, as a tie-break, loses
    nothing of the mean. Remaining ties go to the first in a seeded shuffle of the candidates.

    Returns:
        int64 (size, num_tiles); row k, column p names the tile shown at position p.

    Raises:
        ConfigError: There are fewer than `size` permutations.
    """
    if size > math.factorial(num_tiles):
        raise ConfigError(
            f"num_permutations (={size}) exceeds the {math.factorial(num_tiles)} permutations of "
            f"{num_tiles} tiles ({num_tiles}!); lower it."
        )
    candidates = _candidates(num_tiles, np.random.Generator(np.random.Philox(seed)))
    if size > candidates.shape[1]:
        raise ConfigError(
            f"num_permutations (={size}) exceeds the {candidates.shape[1]} distinct permutations "
            f"drawn of {num_tiles} tiles; lower it."
        )
    # One integer ranks a candidate: minimum distance, then sum; -1 marks the chosen.
    chosen = [0]
    smallest = np.full(candidates.shape[1], num_tiles, dtype=np.int64)
    total = np.zeros(candidates.shape[1], dtype=np.int64)
    while len(chosen) < size:
        distance = np.zeros(candidates.shape[1], dtype=np.uint8)
        for row in candidates:
            distance += row != row[chosen[-1]]
        np.minimum(smallest, distance, out=smallest)
        total += distance
        # A chosen candidate has distance 0 to itself, so its minimum can not win while a
        # candidate with a distance above 0 is left; `size` above ensures one is.
        chosen.append(int(np.argmax(smallest * (size * num_tiles + 1) + total)))
    return candidates[:, chosen].T.astype(np.int64)


def distances(perms: NDArray[np.int64]) -> Distances:
    """Measure a set of at least two permutations, (K, T)."""
    num_tiles = perms.shape[1]
    histogram = np.zeros(num_tiles + 1, dtype=np.int64)
    for k in range(len(perms) - 1):
        apart = (perms[k + 1 :] != perms[k]).sum(axis=1)
        histogram += np.bincount(apart, minlength=num_tiles + 1)
    pairs = int(histogram.sum())
    return Distances(
        min=int(np.flatnonzero(histogram)[0]),
        mean=float((histogram * np.arange(num_tiles + 1)).sum() / pairs),
        histogram=tuple(int(n) for n in histogram),
    )


def _candidates(num_tiles: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return distinct permutations in random order, uint8 (num_tiles, N): one row a position."""
    if num_tiles <= _MAX_ENUMERATED:
        flat = np.fromiter(
            itertools.chain.from_iterable(itertools.permutations(range(num_tiles))), dtype=np.uint8
        )
        rows = flat.reshape(-1, num_tiles)
    else:
        identity = np.tile(np.arange(num_tiles, dtype=np.uint8), (math.factorial(9), 1))
        rows = np.unique(rng.permuted(identity, axis=1), axis=0)
    return np.ascontiguousarray(rows[rng.permutation(len(rows))].T)
