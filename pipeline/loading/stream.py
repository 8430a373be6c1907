"""Shards without an index into the exact loader's graph, by webdataset's reader and buffer."""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import webdataset
from braceexpand import braceexpand
from pydantic import Field, field_validator
from typing_extensions import Self

from pipeline.config import Config, ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.loading.graph_runner import (
    Batch,
    Failure,
    LoaderCounters,
    PlannedBatch,
    plan_views,
    run_plans,
)
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.piped import STDIN, absolute_url, check_url
from pipeline.loading.quarantine import DamagePolicy, EpochCounts, Quarantine
from pipeline.loading.unindexed import StreamedSample, Unindexed, as_samples, damage
from pipeline.pretext.draws import Draws
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.remote.cache import ShardCache
from pipeline.shards.damage import Damage, DamageError

_MAX_LOST = 1000
"""Samples that may be lost without a batch between them."""


class StreamConfig(Config):
    """Shards that are read in passing."""

    url: str | tuple[str, ...]
    """What webdataset reads: paths, http(s)://, `pipe:COMMAND`, - for standard input; with braces,
    as in shard-{0000..0999}.tar."""
    samples_per_epoch: int = Field(gt=0)
    """What is called an epoch, as a stream has no end: it is read again and again, except standard
    input."""
    shuffle: int = Field(1000, ge=0)
    """Samples in the shuffle buffer of each rank, held encoded in memory; 0 for none."""

    @field_validator("url")
    @classmethod
    def _is_given(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not url or not all(url):
            raise ValueError("names no shard; name at least one, none by an empty name.")
        for one in (url,) if isinstance(url, str) else url:
            list(braceexpand(one, escape=False))  # Its ValueError names what has no partner.
        return url

    @property
    def _given(self) -> tuple[str, ...]:
        return (self.url,) if isinstance(self.url, str) else self.url

    @property
    def urls(self) -> tuple[str, ...]:
        """All shards, braces expanded."""
        return tuple(url for one in self._given for url in braceexpand(one, escape=False))

    def absolute(self) -> Self:
        """Resolve paths, for processes that start in another folder."""
        return self.model_copy(update={"url": tuple(map(absolute_url, self._given))})

    def check(self, order: OrderConfig, *, world_size: int) -> None:
        """Find what would stop the loader before anything is started.

        Raises:
            ConfigError: A shard cannot be opened, there are too few, or an epoch has no step.
        """
        urls = self.urls
        for url in urls:
            check_url(url)
        if STDIN in urls and len(urls) > 1:
            raise ConfigError(
                f"data.stream.url names {STDIN} and other shards (={len(urls) - 1}): standard input"
                " cannot be read again with them; give it alone."
            )
        if len(urls) < world_size:
            raise ConfigError(
                f"data.stream.url names {len(urls)} shards, fewer than world_size (={world_size}): "
                "some ranks would read nothing and DDP would hang. Give more shards."
            )
        if self.samples_per_epoch < order.global_batch:
            raise ConfigError(
                f"data.stream.samples_per_epoch (={self.samples_per_epoch}) must be at least "
                f"global_batch (={order.global_batch}), or an epoch has no step; raise it."
            )
        self.cut(order).lanes_of(0, world_size)

    def cut(self, order: OrderConfig) -> Order:
        """Make the order that cuts an epoch into steps and shares; its ids mean nothing."""
        return Order(np.array([self.samples_per_epoch]), order, seed=0)


class StreamLoader:
    """Batches of a pretext from shards that are read in passing.

    The shares of the ranks, and the view of a sample at its n-th visit, are those of the exact
    loader's rules; the order is not: which samples make a step depends on the number of ranks, and
    a position is only a count of steps. What is lost is replaced by what comes next.
    """

    def __init__(
        self,
        config: StreamConfig,
        order: OrderConfig,
        pretext: PretextConfig,
        *,
        seed: int,
        rank_info: RankInfo,
        policy: DamagePolicy,
    ) -> None:
        config.check(order, world_size=rank_info.world_size)
        steps = config.cut(order)
        self.max_batch = (
            len(steps.lanes_of(rank_info.rank, rank_info.world_size)) * order.lane_share
        )
        self.global_batch, self.remainder = order.global_batch, steps.remainder
        self.steps_per_epoch = steps.steps_per_epoch
        self.counters = LoaderCounters()
        self.cache: ShardCache | None = None
        self._config, self._pretext, self._seed, self._rank_info = config, pretext, seed, rank_info
        self._quarantine = Quarantine(policy, rank_info.rank)
        self._counts = EpochCounts(first_step=0)
        self._step = 0  # Over all epochs, after the last consumed batch.
        self._reader: Unindexed | None = None
        self._samples: Iterator[StreamedSample] = iter(())
        self._taken: dict[int, list[StreamedSample]] = {}
        self._planning = 0
        self._lost = self._lost_in_a_row = 0
        self._bad_shards: Counter[int] = Counter()

    def state(self) -> dict[str, Any]:
        """Return the position, which counts steps only, and what it belongs to."""
        epoch, step = divmod(self._step, self.steps_per_epoch)
        return {"epoch": epoch, "step": step, **self._identity()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting at a position; the shards are read from the start in another order.

        Raises:
            ConfigError: The state belongs to indexed shards, or to a stream cut into other steps.
        """
        for key, ours in self._identity().items():
            if state.get(key) != ours:
                raise ConfigError(
                    f"{key} (={ours}) differs from the checkpoint's (={state.get(key)}): its epochs"
                    " and steps would mean other samples. Start a new run."
                )
        self.close()
        self._step = state["epoch"] * self.steps_per_epoch + state["step"]
        self._counts = EpochCounts(first_step=state["step"])
        self._say(
            f"data.stream starts anew at step {self._step}, shuffled by it: samples of this epoch "
            "may come again, others not at all."
        )

    def batches(self, options: GraphOptions) -> Iterator[Batch]:
        """Yield batches, counted from the current position on, of shards read from the start.

        Raises:
            ConfigError: Standard input has ended.
            DamageError: The policy is to stop, or too much is lost.
        """
        self._start()
        plans = (self._plan(step) for step in count(self._step))
        tiles = [task.tiles for task in tasks_of(self._pretext)]
        build = lambda feed: tile_graph(feed, tiles, options)  # noqa: E731
        try:
            for done, views in run_plans(plans, build, self._repair, self.counters):
                self._advance(done)
                yield Batch(done.epoch, done.step, done.sample_ids, views, done.labels)
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading; no process that gives shards is left."""
        if self._reader is not None:
            self._reader.close()
        self._samples = iter(())
        self._taken.clear()

    def _start(self) -> None:
        self.close()
        if self._step == 0:
            self._say(
                "data.stream reads in passing: no exact resume, samples may repeat or be left out "
                "within an epoch, another number of ranks changes the order."
            )
        self._reader = Unindexed(
            self._config.urls,
            seed=self._seed,
            rank_info=self._rank_info,
            first_pass=self._step,  # So that a run that goes on sees neither old order nor views.
            report=self._lose,
        )
        self._samples = iter(self._reader)
        if size := self._config.shuffle:
            rng = random.Random(f"{self._seed}:{self._rank_info.rank}:{self._step}")
            self._samples = webdataset.shuffle(size, initial=size, rng=rng)(self._samples)

    def _plan(self, number: int) -> PlannedBatch:
        self._planning = number
        started = time.perf_counter()
        samples = [self._next() for _ in range(self.max_batch)]
        self.counters.read_s += time.perf_counter() - started
        return self._planned(number, samples)

    def _planned(self, number: int, passed: list[StreamedSample]) -> PlannedBatch:
        started = time.perf_counter()
        self._taken[number] = passed
        samples = as_samples(passed)
        ids, visits = np.array([(one.sample_id, one.visit) for one in passed], np.int64).T
        draws = Draws(self._seed, visits, ids)
        mates = np.where(np.arange(len(ids)) == len(ids) - 1, 1 - len(ids), 1)
        plan = plan_views(self._pretext, samples, draws, mates)
        lost, self._lost = self._lost, 0
        self.counters.plan_s += time.perf_counter() - started
        epoch, step = divmod(number, self.steps_per_epoch)
        return PlannedBatch(epoch, step, ids, lost, samples, plan.labels, plan.tasks, plan.arrays)

    def _repair(self, failure: Failure) -> PlannedBatch:
        """Plan a step again whose graph failed, with others for the images that do not decode."""
        failed, bad = failure.planned, failure.positions
        number = failed.epoch * self.steps_per_epoch + failed.step
        passed = self._taken[number]
        self._planning, self._lost = number, self._lost + failed.replaced
        for position in bad:
            one = passed[position]
            self._lose(damage(one.url, one.key, "decode", "the image does not decode."))
        whole = [self._next() if n in bad else one for n, one in enumerate(passed)]
        return self._planned(number, whole)

    def _next(self) -> StreamedSample:
        """Take the next sample that is not known to be bad."""
        for sample in self._samples:
            if (sample.sample_id, sample.visit) not in self._quarantine:
                return sample
            self._count_loss()
        raise ConfigError(
            f"data.stream.url (={STDIN}) ended at step {self._planning}, and standard input cannot "
            "be read again: send more, train less, or name files or a pipe:. Ray's workers have no "
            "standard input."
        )

    def _lose(self, lost: Damage) -> None:
        """Take in what the stream lost, and stop where that is too much."""
        epoch, step = divmod(self._planning, self.steps_per_epoch)
        self._quarantine.admit(lost, epoch=epoch, step=step)
        self._count_loss()
        if lost.reason == "shard" and self._reader is not None:
            self._judge_shards(self._reader, lost)

    def _count_loss(self) -> None:
        self._lost += 1
        self._lost_in_a_row += 1
        if self._lost_in_a_row > _MAX_LOST + 8 * self.max_batch:
            raise DamageError(
                f"{self._lost_in_a_row} samples in a row cannot be used; look at "
                f"{self._quarantine.policy.ledger}, and whether the shards hold images."
            )

    def _judge_shards(self, reader: Unindexed, last: Damage) -> None:
        """Stop where too many shards of a pass are bad: nobody knows how many samples they hold."""
        self._bad_shards[reader.visit] += 1
        bad, allowed = self._bad_shards[reader.visit], self._quarantine.policy.max_bad_fraction
        if bad > allowed * reader.num_shards:
            raise DamageError(
                f"{bad} of {reader.num_shards} shards of this pass are damaged, more than "
                f"max_bad_fraction (={allowed}) allows; the last: {last}"
            )

    def _advance(self, done: PlannedBatch) -> None:
        counts = self._counts
        counts.delivered += len(done.sample_ids)
        counts.replaced += done.replaced
        self._quarantine.judge(counts, samples_per_epoch=self.steps_per_epoch * self.max_batch)
        del self._taken[self._step]
        self._lost_in_a_row = 0
        self._step += 1
        if self._step % self.steps_per_epoch == 0:
            self._counts = EpochCounts(first_step=0)

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": f"stream of {self._config.samples_per_epoch}",
            "seed": self._seed,
            "global_batch": self.global_batch,
        }

    def _say(self, line: str) -> None:
        if self._rank_info.rank == 0:
            sys.stderr.write(f"tessera: {line}\n")
