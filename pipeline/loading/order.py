"""Which sample comes when: a pure function of (sample counts, seed, epoch, step)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash
from numba import njit, vectorize
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config, ConfigError

Ints = NDArray[np.int64]

_FEISTEL_ROUNDS = 6
_SPARES_IN_WINDOW = 8


class OrderConfig(Config):
    """How an epoch is cut and shuffled."""

    global_batch: int = Field(gt=0)
    """Samples in one step over all ranks; a multiple of num_lanes."""
    num_lanes: int = Field(gt=0, le=65_536)
    """Parallel segments of an epoch; the largest world size that can share the work."""
    window: int = Field(gt=0, le=2**31)
    """Samples that are shuffled together inside a lane; bounds how many shards a lane has open."""

    @model_validator(mode="after")
    def _lanes_share_a_batch(self) -> Self:
        if self.global_batch % self.num_lanes:
            raise ValueError(
                f"global_batch (={self.global_batch}) must be a multiple of "
                f"num_lanes (={self.num_lanes}): every lane gives the same share of a batch."
            )
        return self

    @property
    def lane_share(self) -> int:
        """Samples that one lane gives to one step."""
        return self.global_batch // self.num_lanes


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The concatenation of the permuted shards."""

    shards: Ints
    """(S,) shard numbers in the order of this epoch."""
    ends: Ints
    """(S,) position after the last sample of each, in the same order."""


class Order:
    """The order of a data set: ids of any step of any epoch, in O(number of shards) memory.

    An epoch permutes the shards and concatenates them into one sequence of N samples, cut into
    `num_lanes` segments whose lengths differ by at most 1. Inside a lane, windows of `window`
    samples are permuted. A step takes the same share from every lane, so rank r of R, which owns
    the lanes l with l % R == r, has the same number of steps as every other, for any R.

    A sample id counts the samples shard by shard in the manifest's order.
    """

    def __init__(self, shard_counts: Ints, config: OrderConfig, *, seed: int) -> None:
        self.config = config
        self._seed = seed
        self._starts = np.concatenate([[0], np.cumsum(shard_counts, dtype=np.int64)])
        self._counts = shard_counts.astype(np.int64)
        self.num_samples = int(self._starts[-1])
        if self.num_samples < config.global_batch:
            raise ConfigError(
                f"the data set holds {self.num_samples} samples, fewer than one "
                f"global_batch (={config.global_batch}); lower global_batch or add images."
            )
        bounds = np.arange(config.num_lanes + 1, dtype=np.int64) * self.num_samples
        self._lane_bounds = bounds // config.num_lanes
        shortest = self.num_samples // config.num_lanes
        self.steps_per_epoch = shortest // config.lane_share
        self._epoch = lru_cache(maxsize=2)(self._permute_shards)

    @property
    def remainder(self) -> int:
        """Samples of an epoch that fill no step; fewer than global_batch."""
        return self.num_samples - self.steps_per_epoch * self.config.global_batch

    @property
    def shards_at_once(self) -> int:
        """About how many shards all lanes read from at one step."""
        mean = self.num_samples / len(self._counts)
        return self.config.num_lanes * (2 + math.ceil(self.config.window / mean))

    def global_batch(self, epoch: int, step: int) -> Ints:
        """Ids of one step, lane by lane.

        Returns:
            int64 (global_batch,).
        """
        return self._lanes(epoch, step, np.arange(self.config.num_lanes))

    def rank_batch(self, epoch: int, step: int, *, rank: int, world_size: int) -> Ints:
        """Ids of one rank's share of a step, lane by lane.

        Returns:
            int64 (B,); B differs between ranks by one lane's share where world_size does not
            divide num_lanes.
        """
        return self._lanes(epoch, step, self.lanes_of(rank, world_size))

    def spare(self, epoch: int, step: int, slot: int, attempt: int) -> int:
        """Name a sample that replaces a damaged one; try attempt 0, 1, 2 and so on.

        The first attempts stay in the window of the damaged sample, whose shards are open anyway;
        later ones search the whole set. A pure function of the position, so the same for
        every world size and after every resume.

        Args:
            epoch: Epoch of the damaged sample.
            step: Step of the damaged sample.
            slot: Its position in the global batch.
            attempt: Counts from 0.
        """
        share = self.config.lane_share
        lane, inside = divmod(slot, share)
        place = step * share + inside
        first, size = 0, self.num_samples
        if attempt < _SPARES_IN_WINDOW:
            start, end = int(self._lane_bounds[lane]), int(self._lane_bounds[lane + 1])
            first = start + place // self.config.window * self.config.window
            size = min(end - first, self.config.window)
        key = _key(self._seed, epoch, f"spare {lane} {place} {attempt}")
        position = first + int(key % np.uint64(size))
        return int(self._ids_at(epoch, np.array([position]))[0])

    def lane(self, epoch: int, lane: int) -> Ints:
        """Ids of one lane in the order of an epoch, the remainder at its end.

        Returns:
            int64 (N,).
        """
        inside = np.arange(self._lane_bounds[lane + 1] - self._lane_bounds[lane])
        return self._ids_in_lanes(epoch, np.full(len(inside), lane), inside)

    def slots_of(self, rank: int, world_size: int) -> Ints:
        """Positions in the global batch of each sample of a rank's batch, int64 (B,)."""
        share = self.config.lane_share
        lanes = self.lanes_of(rank, world_size)
        return (lanes[:, None] * share + np.arange(share)).ravel()

    def shards_ahead(self, epoch: int, step: int, lanes: Ints, *, samples: int) -> Ints:
        """Shards that lanes need from a step on, for about `samples` samples of each lane.

        Stops at the end of the epoch. The shards of one lane follow each other as they are read;
        lanes take turns.

        Returns:
            int64 (S,), each shard once, the first needed first.
        """
        order = self._epoch(epoch)
        share, window = self.config.lane_share, self.config.window
        first = step * share // window * window  # A window is read in any order.
        last = -(-(step * share + -(-samples // share) * share) // window) * window
        begin = self._lane_bounds[lanes] + first
        end = np.minimum(self._lane_bounds[lanes] + last, self._lane_bounds[lanes + 1])
        low = np.searchsorted(order.ends, begin, side="right")
        high = np.searchsorted(order.ends, end - 1, side="right") + 1
        depth = int((high - low).max(initial=0))
        turns = low[None, :] + np.arange(depth)[:, None]
        places = turns[turns < high[None, :]]
        _, firsts = np.unique(places, return_index=True)
        named: Ints = order.shards[places[np.sort(firsts)]]
        return named

    def lanes_of(self, rank: int, world_size: int) -> Ints:
        """Lanes that a rank owns, ascending.

        Raises:
            ConfigError: There are more ranks than lanes.
        """
        if world_size > self.config.num_lanes:
            raise ConfigError(
                f"world_size (={world_size}) exceeds num_lanes (={self.config.num_lanes}): some "
                "ranks would read nothing and DDP would hang. Raise num_lanes."
            )
        return np.arange(rank, self.config.num_lanes, world_size)

    def rows(self, sample_ids: Ints) -> tuple[Ints, Ints]:
        """Find the shard and the row in that shard of each id."""
        shards = np.searchsorted(self._starts, sample_ids, side="right") - 1
        return shards, sample_ids - self._starts[shards]

    def _lanes(self, epoch: int, step: int, lanes: Ints) -> Ints:
        if not 0 <= step < self.steps_per_epoch:
            raise ConfigError(f"step (={step}) must be in 0..{self.steps_per_epoch - 1}.")
        share = self.config.lane_share
        inside = np.tile(step * share + np.arange(share, dtype=np.int64), len(lanes))
        return self._ids_in_lanes(epoch, np.repeat(lanes, share), inside)

    def _ids_in_lanes(self, epoch: int, lane: Ints, inside: Ints) -> Ints:
        """Ids at places inside lanes, both (N,)."""
        window = inside // self.config.window
        first = window * self.config.window
        lane_starts = self._lane_bounds[lane]
        sizes = np.minimum(self._lane_bounds[lane + 1] - lane_starts - first, self.config.window)
        keys = _mix(_mix(_key(self._seed, epoch, "window") + _u64(lane)) + _u64(window))
        shuffled = permute(inside - first, sizes, keys)
        return self._ids_at(epoch, lane_starts + first + shuffled)

    def _ids_at(self, epoch: int, positions: Ints) -> Ints:
        order = self._epoch(epoch)
        place = np.searchsorted(order.ends, positions, side="right")
        shards = order.shards[place]
        rows = positions - (order.ends[place] - self._counts[shards])
        return self._starts[shards] + rows

    def _permute_shards(self, epoch: int) -> _Epoch:
        keys = _mix(_key(self._seed, epoch, "shards") + _u64(np.arange(len(self._counts))))
        shards = np.argsort(keys, kind="stable")
        return _Epoch(shards, np.cumsum(self._counts[shards]))


def permute(values: Ints, sizes: Ints, keys: NDArray[np.uint64]) -> Ints:
    """Permute 0..size - 1 by a keyed cipher, each element in its own domain, in O(1) memory.

    A generalised Feistel cipher on Z_a x Z_b with a * b >= size, cycle-walked back into the domain
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 and 5).

    Args:
        values: int64 (N,), element n in 0..sizes[n] - 1.
        sizes: int64 (N,), size of each domain, at most 2**31.
        keys: uint64 (N,); equal keys and sizes name the same permutation.

    Returns:
        int64 (N,), element n in 0..sizes[n] - 1.
    """
    permuted: Ints = _permute_one(values, sizes, keys)
    return permuted


def _mix_one(value: np.uint64) -> np.uint64:
    """Scramble 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood 2014, figure 16)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# Compiled: in NumPy a step of 64 samples costs more in calls than in arithmetic.
_mix = vectorize(["uint64(uint64)"], cache=True)(_mix_one)
_mixed = njit(cache=True)(_mix_one)


@vectorize(["int64(int64, int64, uint64)"], cache=True)
def _permute_one(value: np.int64, size: np.int64, key: np.uint64) -> np.int64:
    b = np.uint64(math.ceil(math.sqrt(size)))
    a = (np.uint64(size) + b - np.uint64(1)) // b
    out = np.uint64(value)
    while True:  # a * b exceeds size by less than b, so few elements walk, and not far.
        left, right = out // b, out % b
        for turn in range(0, _FEISTEL_ROUNDS, 2):
            mixed = _mixed(key + np.uint64(turn) + (right << np.uint64(8)))
            left = (left + (mixed >> np.uint64(33))) % a
            mixed = _mixed(key + np.uint64(turn + 1) + (left << np.uint64(8)))
            right = (right + (mixed >> np.uint64(33))) % b
        out = left * b + right
        if out < np.uint64(size):
            return np.int64(out)


def _key(seed: int, epoch: int, purpose: str) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(f"{seed}:{epoch}:{purpose}".encode()))


def _u64(values: Ints) -> NDArray[np.uint64]:
    return values.astype(np.uint64)
