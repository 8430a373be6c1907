"""What a step showed: its samples, where they lie, and their draws, as the loader made them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.explain.describe import describe_draws, listed, only_rows
from pipeline.explain.locate import SampleLocations
from pipeline.loading.data import DataConfig, open_mixture
from pipeline.loading.graph_runner import PlannedBatch
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import Mixture, RankInfo, Share
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.multitask import AnyDraws, PretextConfig, tasks_of
from pipeline.pretext.plan import TilePlan
from pipeline.remote.cache import ShardCache
from pipeline.shards.damage import Damage


@dataclass(frozen=True, slots=True)
class Subject:
    """What is explained: the sets that a run reads, and what it asks of them."""

    data: Mixture
    pretext: PretextConfig
    seed: int
    policy: DamagePolicy
    threads: int
    """CPU threads that decode."""
    cache: ShardCache | None

    def close(self) -> None:
        """Release all shards and the cache."""
        self.data.close()
        if self.cache is not None:
            self.cache.close()


@dataclass(frozen=True, slots=True)
class Slot:
    """A position in a step, which the order fills."""

    position: int
    """Position in the global batch: set by set, within each lane by lane."""
    lane: int
    set_number: int
    set_epoch: int
    """The epoch of the set itself, which its draws and its order are keyed by."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample of a step."""

    slot: Slot
    sample_id: int
    """Counted through all sets."""
    key: str
    shard: str
    offset: int
    """First byte of the image in the tar."""
    num_bytes: int
    """Size of the encoded image."""
    width: int
    """px."""
    height: int
    """px."""
    label: str | None
    """Name of the class."""
    instead_of: Damage | None
    """The damaged sample that it replaces."""
    draws: tuple[AnyDraws, ...]
    """Draws of each task."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A step, or one rank's share of it, in the order of the batch."""

    fingerprint: str
    epoch: int
    step: int
    rank_info: RankInfo
    steps_per_epoch: int
    remainder: int
    """Samples of an epoch that fill no step."""
    global_batch: int
    num_lanes: int
    task_names: tuple[str, ...]
    samples: tuple[ShownSample, ...]
    plans: tuple[TilePlan, ...]
    """Plan of each task, a row per sample."""
    views: NDArray[np.uint8]
    """(B, ...), as the graph gave them."""
    payloads: tuple[NDArray[np.uint8], ...]
    """The encoded images, uint8 1-D each."""

    def listed(self) -> dict[str, Any]:
        """Return all but the pixels, as JSON holds it."""
        names = ("fingerprint", "epoch", "step", "steps_per_epoch", "remainder", "global_batch")
        rows = []
        for shown in self.samples:
            row = asdict(shown)
            row["draws"] = listed(dict(zip(self.task_names, shown.draws, strict=True)))
            rows.append({**row.pop("slot"), **row})
        head = {name: getattr(self, name) for name in (*names, "num_lanes")}
        return {**head, **asdict(self.rank_info), "samples": rows}


def open_subject(
    data: DataConfig, order: OrderConfig, pretext: PretextConfig, *, seed: int
) -> Subject:
    """Open the shards of a run; nothing is recorded of damage that is met.

    Raises:
        ConfigError: A stream has no order to explain, or the shards are not there or too few.
    """
    if data.stream:
        raise ConfigError(
            "data.stream has no fixed order, so no step can be told afterwards; index the shards "
            "and give data.manifest: tessera index SHARD... --out DIR"
        )
    mixture, cache = open_mixture(data, order, seed=seed)
    policy = DamagePolicy(data.on_damage, data.max_bad_fraction, None)
    return Subject(mixture, pretext, seed, policy, data.threads, cache)


def explain_step(subject: Subject, epoch: int, step: int, rank_info: RankInfo) -> Explained:
    """Let the loader plan and run a step, on the CPU, and say what it did.

    Raises:
        ConfigError: There is no such step, or there are more ranks than lanes.
        DamageError: A sample is damaged, and the policy is to stop.
    """
    data = subject.data
    if not 0 <= step < data.steps_per_epoch:
        raise ConfigError(
            f"step (={step}) must be in 0..{data.steps_per_epoch - 1}: an epoch has "
            f"{data.steps_per_epoch} steps of {data.global_batch} samples."
        )
    loader = PretextLoader(
        data, subject.pretext, seed=subject.seed, rank_info=rank_info, policy=subject.policy
    )
    options = GraphOptions(
        max_batch=loader.max_batch, num_threads=subject.threads, device_id=None, prefetch=1
    )
    planned, views = loader.one_step(epoch, step, options)
    share = data.share(epoch, step, rank_info)
    return Explained(
        fingerprint=data.fingerprint,
        epoch=epoch,
        step=step,
        rank_info=rank_info,
        steps_per_epoch=data.steps_per_epoch,
        remainder=data.remainder,
        global_batch=data.global_batch,
        num_lanes=data.num_lanes,
        task_names=tuple(task.name for task in tasks_of(subject.pretext)),
        samples=tuple(_samples(subject, planned, share)),
        plans=planned.tasks,
        views=views.numpy(),
        payloads=tuple(planned.samples.payloads),
    )


def explain_sample(subject: Subject, found: SampleLocations, epoch: int) -> list[Explained]:
    """Explain the steps that contain a sample, each reduced to that sample."""
    steps = []
    for one in found.appearances:
        # The share of one lane contains it, and costs least.
        lane = RankInfo(one.lane, subject.data.num_lanes)
        whole = explain_step(subject, epoch, one.step, lane)
        row = [shown.slot.position for shown in whole.samples].index(one.position)
        steps.append(_only(whole, slice(row, row + 1)))
    return steps


def _only(whole: Explained, rows: slice) -> Explained:
    """Drop the other samples of a rank, whose number then no longer matters."""
    return replace(
        whole,
        rank_info=RankInfo(0, 1),
        samples=whole.samples[rows],
        plans=tuple(only_rows(plan, rows) for plan in whole.plans),
        views=whole.views[rows],
        payloads=whole.payloads[rows],
    )


def _samples(subject: Subject, planned: PlannedBatch, share: Share) -> Iterator[ShownSample]:
    slots = list(_slots(subject.data, share))
    draws = describe_draws(subject.pretext, planned, [slot.position for slot in slots])
    wanted = share.sample_ids.tolist()
    for row, slot in enumerate(slots):
        sample_id = int(planned.sample_ids[row])
        where = _address(subject.data, sample_id)
        replaced = sample_id != wanted[row]
        yield ShownSample(
            slot=slot,
            sample_id=sample_id,
            key=where.key,
            shard=where.shard,
            offset=where.offset,
            num_bytes=planned.samples.payloads[row].size,
            width=int(planned.samples.widths[row]),
            height=int(planned.samples.heights[row]),
            label=_class_name(subject.data, sample_id, int(planned.samples.labels[row])),
            instead_of=_address(subject.data, wanted[row]) if replaced else None,
            draws=draws[row],
        )


def _slots(data: Mixture, share: Share) -> Iterator[Slot]:
    ahead = 0
    for part in share.parts:
        config = data.sets[part.number].order.config
        for slot in part.slots.tolist():
            yield Slot(ahead + slot, slot // config.lane_share, part.number, part.epoch)
        ahead += config.global_batch


def _address(data: Mixture, sample_id: int) -> Damage:
    """Say where a sample lies, in the words of damage: what reading does not find, decoding did."""
    damaged = data.read(np.array([sample_id])).damaged  # Opens its shard, too.
    return damaged[0] if damaged else data.damage(sample_id, "decode", "the image does not decode.")


def _class_name(data: Mixture, sample_id: int, label: int) -> str | None:
    classes = data.sets[data.locate(sample_id)[0]].store.manifest.classes
    return classes[label] if classes and label >= 0 else None
