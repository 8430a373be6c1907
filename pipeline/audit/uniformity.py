"""Draws and answers, without pixels: even, independent, different on every rank, far apart?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.evidence import ChiSquare, ProbeScore, chi_square_even, chi_square_together
from pipeline.audit.gather import join
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.context import neighbours
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task, plan_task
from pipeline.pretext.permutation_set import distances
from pipeline.pretext.plan import SquareConfig, TilePlan

# Shapes: M images drawn for, L answers, T tiles, K permutations.


RANKS, EPOCHS = 8, 3
_SHARDS, _SAMPLES_PER_SHARD = 8, 1024
_LOCAL_BATCH = 64
_SIDE = 4096
"""All images count as equally large, so that equal numbers give equal draws."""
_MOST_BINS = 16
_RARE = 1e-3
"""A test is believed below this probability, times the number of tests."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What ranks draw for their images over some epochs."""

    task: Task
    rank: NDArray[np.int64]
    """(M,)."""
    epoch: NDArray[np.int64]
    """(M,)."""
    plan: TilePlan
    """M images in its first axis."""


def draw(task: Task, *, seed: int, keyed_by_slot: bool = False) -> Drawn:
    """Draw for a set of 8,192 images, as 8 ranks do in 3 epochs.

    Args:
        task: What is planned.
        seed: The run's.
        keyed_by_slot: Draw by the place in the rank's own epoch instead of the sample's id: the
            well-known mistake of loaders whose workers start from the same seed.
    """
    config = OrderConfig(global_batch=_LOCAL_BATCH * RANKS, num_lanes=RANKS, window=1024)
    order = Order(np.full(_SHARDS, _SAMPLES_PER_SHARD), config, seed=seed)
    sides = np.full(_LOCAL_BATCH, _SIDE, np.int32)
    ranks, epochs, plans = [], [], []
    for epoch in range(EPOCHS):
        for rank in range(RANKS):
            for step in range(order.steps_per_epoch):
                ids = order.rank_batch(epoch, step, rank=rank, world_size=RANKS)
                if keyed_by_slot:
                    ids = np.arange(len(ids)) + step * len(ids)
                plans.append(plan_task(task, sides, sides, Draws(seed, epoch, ids)))
                ranks.append(np.full(len(ids), rank))
                epochs.append(np.full(len(ids), epoch))
    return Drawn(task, np.concatenate(ranks), np.concatenate(epochs), join(plans))


def probe_draws(drawn: Drawn) -> ProbeScore:
    """Look for draws that two ranks share, and for draws that are uneven or depend on another.

    Labels and places are held, by chi-square tests, against even shares, on each rank in each epoch
    and over all; and against rank, epoch and each other.

    Returns:
        Score: the larger of two. `shared`: the share of images whose labels and places are those of
        an image of another rank; by chance there are next to none. `effect`: of the tests that
        chance does not explain, the largest Cramer's V. `tests`; `p`: the smallest probability,
        times the number of tests. All draws are looked at, so there is no interval.
    """
    tests = _tests(drawn)
    least = min(1.0, len(tests) * min(test.p for test in tests))
    believed = [test.effect for test in tests if test.p * len(tests) < _RARE]
    effect, shared = max(believed, default=0.0), _shared(drawn)
    worst = max(effect, shared)
    detail = {"shared": shared, "effect": effect, "tests": float(len(tests)), "p": least}
    return ProbeScore(worst, worst, worst, len(drawn.rank), detail)


def _shared(drawn: Drawn) -> float:
    """Return the share of images whose draws another rank has, too, in any epoch."""
    plan, num = drawn.plan, len(drawn.rank)
    parts = (plan.labels, plan.anchors, plan.crops, plan.mirrored)
    rows = np.concatenate([part.reshape(num, -1).astype(np.int64) for part in parts], axis=1)
    _, kinds = np.unique(rows, axis=0, return_inverse=True)
    table = np.zeros((kinds.max() + 1, RANKS), np.bool_)
    table[kinds, drawn.rank] = True
    return float((table.sum(axis=1) > 1)[kinds].mean())


def _tests(drawn: Drawn) -> list[ChiSquare]:
    codes = _codes(drawn)
    tests = []
    group = drawn.rank * EPOCHS + drawn.epoch
    for values, size in codes.values():
        bins = min(size, _MOST_BINS)
        shares = np.bincount(np.arange(size) * bins // size) / size
        binned = values * bins // size
        for rows in (np.ones(len(group), np.bool_), *(group == g for g in np.unique(group))):
            tests.append(chi_square_even(np.bincount(binned[rows], minlength=bins), shares))
        tests += [chi_square_together(binned, other) for other in (drawn.rank, drawn.epoch)]
    every = [values * min(size, _MOST_BINS) // size for values, size in codes.values()]
    tests += [chi_square_together(a, b) for n, a in enumerate(every) for b in every[:n]]
    return tests


def _codes(drawn: Drawn) -> dict[str, tuple[NDArray[np.int64], int]]:
    """Return what is drawn evenly: values 0..size - 1, and size; only where size is 2 or more."""
    plan, task = drawn.plan, drawn.task
    if isinstance(task, SquareConfig):  # The answers are not drawn; the square's position is.
        top = plan.crops[:, 0] / (_SIDE - plan.crops[:, 2] + 1)
        left = plan.crops[:, 1] / (_SIDE - plan.crops[:, 3] + 1)
        codes = {"top": top, "left": left}
        return {name: ((v * 8).astype(np.int64), 8) for name, v in codes.items()}
    if isinstance(task, JigsawConfig):
        choices = task.num_permutations
    else:
        choices = len(neighbours(task.grid))
    jitter = (plan.anchors - task.cells).astype(np.int64)
    found = {"label": (plan.labels[:, 0], choices)}
    found |= {f"answer {n}": (plan.labels[:, n], choices) for n in range(1, plan.labels.shape[1])}
    for tile in range(task.num_tiles):
        for axis, name in enumerate(("down", "right")):
            found[f"tile {tile} {name}"] = (jitter[:, tile, axis], task.slack_px + 1)
    return {name: code for name, code in found.items() if code[1] > 1}


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
