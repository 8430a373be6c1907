"""Several sets of shards as one: exact shares of every global batch, each set in its own epochs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.loading.order import Ints, Order, OrderConfig
from pipeline.shards.damage import Damage, Reason
from pipeline.shards.store import Samples, Store

_FETCH_AHEAD = 4  # Windows of every lane whose shards are prefetched.


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Rank and world size: which share of a step is ours."""

    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """Shards and their order."""

    store: Store
    order: Order


@dataclass(frozen=True, slots=True)
class SetShare:
    """What one set gives to a rank's batch."""

    number: int
    """Number of the set."""
    epoch: int
    """The set's own epoch."""
    step: int
    """Step in that epoch."""
    slots: Ints
    """(B,), positions in the set's share of the global batch."""


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's batch: which samples, and where each of them stands in the order."""

    sample_ids: Ints
    """(B,), counted through all sets."""
    epochs: Ints
    """(B,), the epoch of each sample's own set."""
    parts: tuple[SetShare, ...]
    """Share of each set, in the order of `sample_ids`."""


class Mixture:
    """The sets that a run reads; one set alone is a mixture of one.

    Set d gives a fixed number of samples to every global batch. It is at step t % S_d of its epoch
    t // S_d, with t the steps since the start and S_d its steps in an epoch. An epoch of the
    mixture ends with the set that needs the most steps. Sample ids count through the sets.
    """

    def __init__(self, sets: Sequence[DataSet]) -> None:
        self.sets = tuple(sets)
        sizes = [one.order.num_samples for one in sets]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.steps_per_epoch = max(one.order.steps_per_epoch for one in sets)
        self.global_batch = sum(one.order.config.global_batch for one in sets)
        self.num_lanes = sets[0].order.config.num_lanes
        for one in sets:
            one.store.keep_open(one.order.shards_at_once)
        self.remainder = sum(one.order.remainder for one in sets)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the sets and their shares; of one set, its manifest's."""
        names = [one.store.manifest.fingerprint for one in self.sets]
        if len(names) == 1:
            return names[0]
        shares = [one.order.config.global_batch for one in self.sets]
        rows = [f"{name} {share}" for name, share in zip(names, shares, strict=True)]
        return xxhash.xxh3_64_hexdigest("\n".join(rows).encode())

    def share(self, epoch: int, step: int, rank_info: RankInfo) -> Share:
        """Say which samples a rank takes at a step, set by set."""
        steps = epoch * self.steps_per_epoch + step
        parts, ids, epochs = [], [], []
        for number, one in enumerate(self.sets):
            own_epoch, own_step = divmod(steps, one.order.steps_per_epoch)
            rank, world_size = rank_info.rank, rank_info.world_size
            own = one.order.rank_batch(own_epoch, own_step, rank=rank, world_size=world_size)
            parts.append(
                SetShare(number, own_epoch, own_step, one.order.slots_of(rank, world_size))
            )
            ids.append(own + self._starts[number])
            epochs.append(np.full(len(own), own_epoch))
        return Share(np.concatenate(ids), np.concatenate(epochs), tuple(parts))

    def mates(self, share: Share) -> Ints:
        """Name another image of the same lane for each row, the same for every number of ranks.

        Returns:
            int64 (B,): how many rows further on it is in the rank's batch; 0 where a lane gives a
            single sample to a step.
        """
        found = []
        for part in share.parts:
            size = self.sets[part.number].order.config.lane_share
            found.append(np.where(part.slots % size == size - 1, 1 - size, 1))
        return np.concatenate(found)

    def batch_size(self, rank_info: RankInfo) -> int:
        """Return the size of a rank's batch."""
        lanes = self.sets[0].order.lanes_of(rank_info.rank, rank_info.world_size)
        return len(lanes) * self.global_batch // self.num_lanes

    def spare(self, share: Share, position: int, attempt: int) -> int:
        """Name a sample of the same set that replaces a damaged one."""
        for part in share.parts:
            if position < len(part.slots):
                order = self.sets[part.number].order
                spare = order.spare(part.epoch, part.step, int(part.slots[position]), attempt)
                return spare + int(self._starts[part.number])
            position -= len(part.slots)
        raise AssertionError("position lies outside of the batch")

    def read(self, sample_ids: Ints) -> Samples:
        """Read samples of any sets; see `Store.read`."""
        if len(self.sets) == 1:
            return self.sets[0].store.read(sample_ids)
        owners = np.searchsorted(self._starts, sample_ids, side="right") - 1
        empty = np.empty(0, np.uint8)
        merged = Samples(
            payloads=[empty] * len(sample_ids),
            heights=np.zeros(len(sample_ids), np.int32),
            widths=np.zeros(len(sample_ids), np.int32),
            labels=np.full(len(sample_ids), -1, np.int64),
            keys=[""] * len(sample_ids),
            damaged={},
        )
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            start = int(self._starts[number])
            _merge(merged, self.sets[number].store.read(sample_ids[places] - start), places, start)
        return merged

    def purged(self) -> dict[int, Damage]:
        """Return the samples of all sets that must not be shown, as of now, by id."""
        found = {}
        for start, one in zip(self._starts.tolist(), self.sets, strict=False):
            for own, told in one.store.purged().items():
                found[start + own] = dataclasses.replace(told, sample_id=start + own)
        return found

    def prefetch(self, share: Share, rank_info: RankInfo) -> None:
        """Ask every store for the shards that the steps from this one on need."""
        for part in share.parts:
            store, order = self.sets[part.number].store, self.sets[part.number].order
            if not store.is_remote:
                continue
            lanes = order.lanes_of(rank_info.rank, rank_info.world_size)
            samples = _FETCH_AHEAD * order.config.window
            store.prefetch(order.shards_ahead(part.epoch, part.step, lanes, samples=samples))

    def damage(self, sample_id: int, reason: Reason, detail: str) -> Damage:
        """Describe damage found after the store had read a sample."""
        number, own = self.locate(sample_id)
        found = self.sets[number].store.damage(own, reason, detail)
        return dataclasses.replace(found, sample_id=sample_id)

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Find the number of a sample's set and its id there."""
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        return number, sample_id - int(self._starts[number])

    def close(self) -> None:
        """Release all shards."""
        for one in self.sets:
            one.store.close()


def orders(
    counts: Sequence[Ints], weights: Sequence[int], config: OrderConfig, *, seed: int
) -> list[Order]:
    """Make the order of each set; set d gives weight d / sum of weights of every global batch.

    Raises:
        ConfigError: A share is not a whole number of samples for every lane, or a set is too small.
    """
    total = sum(weights)
    made = []
    for number, (own, weight) in enumerate(zip(counts, weights, strict=True)):
        unit = config.num_lanes * total
        if config.global_batch * weight % unit:
            raise ConfigError(
                f"weight (={weight}) of {total} gives set {number} a share of global_batch * weight"
                f" / sum = {config.global_batch * weight / total:g} samples, which must be a "
                f"multiple of num_lanes (={config.num_lanes}); change weights or global_batch."
            )
        share = config.model_copy(update={"global_batch": config.global_batch * weight // total})
        made.append(Order(own, share, seed=_seed_of(seed, number)))
    return made


def _seed_of(seed: int, number: int) -> int:
    """Give every set its own shuffles; the first keeps the seed, as if it were alone."""
    return xxhash.xxh3_64_intdigest(f"{seed}:set {number}".encode()) >> 1 if number else seed


def _merge(merged: Samples, read: Samples, places: NDArray[np.int64], start: int) -> None:
    for place, payload in zip(places.tolist(), read.payloads, strict=True):
        merged.payloads[place] = payload
    merged.heights[places] = read.heights
    merged.widths[places] = read.widths
    merged.labels[places] = read.labels
    for place, key in zip(places.tolist(), read.keys, strict=True):
        merged.keys[place] = key
    for own, damage in read.damaged.items():
        moved = dataclasses.replace(damage, sample_id=damage.sample_id + start)
        merged.damaged[int(places[own])] = moved
