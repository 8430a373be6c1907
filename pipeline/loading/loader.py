"""Order + store + draws + graph -> batches; the whole state is (epoch, step)."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.loading.data import DataConfig, open_mixture
from pipeline.loading.graph_runner import (
    Batch,
    Failure,
    LoaderCounters,
    PlannedBatch,
    plan_views,
    run_plans,
)
from pipeline.loading.mixture import Mixture, RankInfo, Share
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import STOP_AT_DAMAGE, DamagePolicy, EpochCounts, Quarantine
from pipeline.loading.stream import StreamLoader
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.remote.cache import ShardCache
from pipeline.shards.damage import Damage, DamageError
from pipeline.shards.store import Samples

_MAX_SPARES = 1000


class Loader(Protocol):
    """What training requires of a loader."""

    counters: LoaderCounters
    cache: ShardCache | None
    """Cache of remote shards, if any."""

    @property
    def max_batch(self) -> int:
        """Size of this rank's share of a step."""

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same on every rank."""

    @property
    def remainder(self) -> int:
        """Samples of an epoch that fill no step."""

    def state(self) -> dict[str, Any]:
        """Return the position after the last consumed batch."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position."""

    def batches(self, options: GraphOptions) -> Iterator[Batch]:
        """Yield batches endlessly, from the current position on."""

    def close(self) -> None:
        """Release shards, threads and files."""


def open_loader(
    data: DataConfig,
    order: OrderConfig,
    pretext: PretextConfig,
    *,
    seed: int,
    rank_info: RankInfo,
    ledger: Path | None,
) -> Loader:
    """Open the shards and make the loader of one rank.

    Raises:
        ConfigError: The shards are not there or too few, or there are more ranks than lanes.
    """
    policy = DamagePolicy(data.on_damage, data.max_bad_fraction, ledger)
    if data.stream:
        return StreamLoader(
            data.stream, order, pretext, seed=seed, rank_info=rank_info, policy=policy
        )
    mixture, cache = open_mixture(data, order, seed=seed)
    loader = PretextLoader(mixture, pretext, seed=seed, rank_info=rank_info, policy=policy)
    loader.cache = cache
    return loader


class PretextLoader:
    """Batches of a pretext, from any position, in the same order on any number of ranks.

    Iteration never ends: epochs follow each other. `state()` is the position after the last
    consumed batch, whatever was computed ahead. A damaged sample stops the run, or is replaced by a
    sample that the order names for its place.
    """

    def __init__(
        self,
        data: Mixture,
        pretext: PretextConfig,
        *,
        seed: int,
        rank_info: RankInfo,
        policy: DamagePolicy = STOP_AT_DAMAGE,
    ) -> None:
        self.max_batch = data.batch_size(rank_info)  # Refuses more ranks than lanes at once.
        check_lanes(pretext, data)
        self.global_batch, self.remainder = data.global_batch, data.remainder
        self.steps_per_epoch = data.steps_per_epoch
        self.counters = LoaderCounters()
        self.cache: ShardCache | None = None
        self._data, self._pretext, self._seed, self._rank_info = data, pretext, seed, rank_info
        self._quarantine = Quarantine(policy, rank_info.rank)
        self._epoch, self._step = 0, 0
        self._counts = EpochCounts(first_step=0)
        self._asked_for = (-1, -1)
        self._obeyed = -1
        """Epoch for which the tombstones were read."""

    def state(self) -> dict[str, Any]:
        """Return the position and what it belongs to; under 256 bytes of JSON."""
        return {"epoch": self._epoch, "step": self._step, **self._identity()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position, whatever the number of ranks that left it.

        Raises:
            ConfigError: The state belongs to other shards, another seed or another order.
        """
        for key, ours in self._identity().items():
            if state[key] != ours:
                raise ConfigError(
                    f"{key} (={ours}) differs from the checkpoint's (={state[key]}): the order of "
                    "samples would change in the middle of a run. Start a new run."
                )
        self._epoch, self._step = state["epoch"], state["step"]
        self._counts = EpochCounts(first_step=self._step)

    def batches(self, options: GraphOptions) -> Iterator[Batch]:
        """Yield batches endlessly, from the current position on."""
        for done, views in self._run(self._positions(), options):
            self._advance(done)
            yield Batch(done.epoch, done.step, done.sample_ids, views, done.labels)

    def one_step(self, epoch: int, step: int, options: GraphOptions) -> tuple[PlannedBatch, Tensor]:
        """Plan and run one step as `batches` does; the position is unchanged."""
        with closing(self._run(iter([(epoch, step)]), options)) as steps:
            return next(steps)

    def close(self) -> None:
        """Release all shards and the cache."""
        self._data.close()
        if self.cache is not None:
            self.cache.close()

    def _run(
        self, positions: Iterator[tuple[int, int]], options: GraphOptions
    ) -> Generator[tuple[PlannedBatch, Tensor], None, None]:
        plans = (self._plan(epoch, step) for epoch, step in positions)
        tiles = [task.tiles for task in tasks_of(self._pretext)]
        build = lambda feed: tile_graph(feed, tiles, options)  # noqa: E731
        yield from run_plans(plans, build, self._repair, self.counters)

    def _plan(self, epoch: int, step: int) -> PlannedBatch:
        started, read_before = time.perf_counter(), self.counters.read_s
        if epoch != self._obeyed:  # A sample purged during an epoch is gone from the next on.
            self._quarantine.purge(self._data.purged())
            self._obeyed = epoch
        share = self._data.share(epoch, step, self._rank_info)
        self._fetch_early(share, epoch, step)
        ids, samples = self._read_whole(share, epoch, step)
        draws = Draws(self._seed, share.epochs, ids)
        plan = plan_views(self._pretext, samples, draws, self._data.mates(share))
        spent = time.perf_counter() - started
        self.counters.plan_s += spent - (self.counters.read_s - read_before)
        others = share.sample_ids[ids != share.sample_ids].tolist()
        purged = sum(map(self._quarantine.is_purged, others))
        made = (samples, plan.labels, plan.tasks, plan.arrays)
        return PlannedBatch(epoch, step, ids, len(others) - purged, *made, purged)

    def _read_whole(self, share: Share, epoch: int, step: int) -> tuple[NDArray[np.int64], Samples]:
        """Read a step's samples, damaged ones replaced."""
        ids, attempts = share.sample_ids.copy(), [0] * len(share.sample_ids)
        bad, epochs = self._quarantine, share.epochs.tolist()
        started = time.perf_counter()
        while True:
            for position in range(len(ids)) if bad else ():
                while (sample := (int(ids[position]), epochs[position])) in bad:
                    if bad.is_purged(sample[0]):
                        bad.record_purged(sample[0], epoch=epoch, step=step)
                    if attempts[position] == _MAX_SPARES:
                        raise DamageError(f"no whole sample found in {_MAX_SPARES} places.")
                    ids[position] = self._data.spare(share, position, attempts[position])
                    attempts[position] += 1
            samples = self._data.read(ids)
            if not samples.damaged:
                break
            for damage in samples.damaged.values():
                self._quarantine.admit(damage, epoch=epoch, step=step)
        self.counters.read_s += time.perf_counter() - started
        return ids, samples

    def _repair(self, failure: Failure) -> PlannedBatch:
        """Plan a step again without the images that have no view."""
        epoch, step = failure.planned.epoch, failure.planned.step
        epochs = self._data.share(epoch, step, self._rank_info).epochs
        for position, damage in zip(failure.positions, _named(self._data, failure), strict=True):
            view_of = None if failure.lasting else int(epochs[position])
            self._quarantine.admit(damage, epoch=epoch, step=step, view_of=view_of)
        return self._plan(epoch, step)

    def _advance(self, done: PlannedBatch) -> None:
        counts, steps = self._counts, self._data.steps_per_epoch
        counts.delivered += len(done.sample_ids) - done.replaced - done.purged
        counts.replaced += done.replaced
        counts.purged += done.purged
        self._quarantine.judge(counts, samples_per_epoch=steps * self.max_batch)
        self._epoch, self._step = self._after(done.epoch, done.step)
        if self._epoch != done.epoch:
            counts.close(done.epoch, planned=(steps - counts.first_step) * self.max_batch)
            self._counts = EpochCounts(first_step=0)

    def _fetch_early(self, share: Share, epoch: int, step: int) -> None:
        """Ask for remote shards each time a lane of the first set enters another window."""
        config = self._data.sets[0].order.config
        window = (epoch, step * config.lane_share // config.window)
        if window != self._asked_for:
            self._data.prefetch(share, self._rank_info)
            self._asked_for = window

    def _positions(self) -> Iterator[tuple[int, int]]:
        epoch, step = self._epoch, self._step
        while True:
            yield epoch, step
            epoch, step = self._after(epoch, step)

    def _after(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch, step + 1) if step + 1 < self._data.steps_per_epoch else (epoch + 1, 0)

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self._data.fingerprint,
            "seed": self._seed,
            "global_batch": self._data.global_batch,
            "num_lanes": self._data.num_lanes,
            "window": self._data.sets[0].order.config.window,
        }


def check_lanes(pretext: PretextConfig, data: Mixture) -> None:
    """Refuse foreign tiles where no other image of the lane is at hand.

    Raises:
        ConfigError: A lane gives a single sample to a step.
    """
    least = min(one.order.config.lane_share for one in data.sets)
    for task in tasks_of(pretext):
        if isinstance(task, JigsawConfig) and task.max_foreign_tiles and least == 1:
            raise ConfigError(
                f"max_foreign_tiles (={task.max_foreign_tiles}) needs two samples of a lane in a "
                "step, but global_batch / num_lanes is 1; raise global_batch or lower num_lanes."
            )


def _named(data: Mixture, failure: Failure) -> list[Damage]:
    """Name the images of a batch that have no view."""
    detail = "the image does not decode, though its bytes are those that were written."
    ids = [int(failure.planned.sample_ids[position]) for position in failure.positions]
    return [data.damage(sample_id, "decode", detail) for sample_id in ids]
