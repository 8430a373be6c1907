"""Evidence for an audit: what the loader and its graph emit for the images of some shards."""

# Shapes: N images, B images of a batch, T tiles of an image.

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from typing_extensions import Self

from pipeline.audit.evidence import Evidence
from pipeline.dali.graph import GraphOptions
from pipeline.loading.data import DataConfig, open_mixture, open_store
from pipeline.loading.draws import Draws
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.loading.views import PretextConfig, plan_task, view_graph
from pipeline.pretext.multitask import Task, tasks_of
from pipeline.pretext.normalize import split_views
from pipeline.pretext.plan import TilePlan
from pipeline.shards.manifest import read_manifest

BATCH = 200
_WINDOW = 4096
Progress = Callable[[float, str], None]
"""Gets the share that is done, 0..1, and what is being done."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which views are audited."""

    data: DataConfig
    """Of one manifest."""
    pretext: PretextConfig
    seed: int
    """The run's: the views are those of its first epoch."""

    def at(self, manifest: str) -> Self:
        """Return the same with other shards."""
        alone = {"manifest": manifest, "mixture": None, "stream": None}
        return replace(self, data=self.data.model_copy(update=alone))


def gather(source: Source, num: int, on_progress: Progress) -> tuple[Evidence, ...]:
    """Let the loader make the views of images, each image once.

    Args:
        source: The shards and the pretext.
        num: Images at most; fewer where the shards hold fewer.
        on_progress: Is called after every batch.

    Returns:
        For each task of the pretext, the views that its loader emits, on the GPU if there is one.

    Raises:
        ConfigError: The shards are not there.
        DamageError: A sample is damaged, and the policy of `data` is to stop.
    """
    tasks = tasks_of(source.pretext)
    with closing(open_source(source, num)) as loader:
        batch, steps = loader.global_batch, _steps(loader, num)
        arrays = [np.empty((steps * batch, *task.tiles.shape), np.uint8) for task in tasks]
        done = []
        for step in range(steps):
            planned, views = loader.one_step(0, step, options_of(source, batch))
            split = split_views(source.pretext, views)
            for array, part in zip(arrays, split, strict=True):
                array[step * batch : (step + 1) * batch] = part.cpu().numpy()
            # Read-only views of the tars, which are closed in the end, must not live on.
            done.append((planned.sample_ids, planned.samples, planned.tasks))
            on_progress((step + 1) / steps, f"{(step + 1) * batch} of {steps * batch} images")
    ids = np.concatenate([sample_ids for sample_ids, _, _ in done])
    heights = np.concatenate([samples.heights for _, samples, _ in done])
    widths = np.concatenate([samples.widths for _, samples, _ in done])
    return tuple(
        Evidence(task, array, join([plans[n] for _, _, plans in done]), ids, heights, widths)
        for n, (task, array) in enumerate(zip(tasks, arrays, strict=True))
    )


def open_source(source: Source, num: int) -> PretextLoader:
    """Open the shards for an audit of so many images: batches that leave next to none over.

    Raises:
        ConfigError: The shards are not there.
    """
    assert source.data.manifest is not None
    num = min(num, read_manifest(source.data.manifest).num_samples)
    order = OrderConfig(global_batch=num // -(-num // BATCH), num_lanes=1, window=_WINDOW)
    mixture, cache = open_mixture(source.data, order, seed=source.seed)
    policy = DamagePolicy(source.data.on_damage, source.data.max_bad_fraction, None)
    loader = PretextLoader(
        mixture, source.pretext, seed=source.seed, place=RankInfo(0, 1), policy=policy
    )
    loader.cache = cache
    return loader


def options_of(source: Source, batch: int) -> GraphOptions:
    """Say how the graph runs: on the GPU if there is one, as training does."""
    device = 0 if torch.cuda.is_available() else None
    return GraphOptions(
        max_batch=batch, num_threads=source.data.threads, device_id=device, prefetch=1
    )


def _steps(loader: PretextLoader, num: int) -> int:
    return min(loader.steps_per_epoch, max(1, num // loader.global_batch))


def emit(source: Source, task: Task, num: int, change: Callable[[TilePlan], TilePlan]) -> Evidence:
    """Push plans through the graph that are not those of the loader, for the first images.

    Args:
        source: Shards on this machine.
        task: What is planned, in the place of the source's pretext.
        num: Images at most.
        change: Maps each plan to what the graph is to make in its place.
    """
    assert source.data.manifest is not None
    parts = []
    with closing(open_store(source.data.manifest, source.data.cache)) as store:
        every = np.arange(min(num, store.manifest.num_samples))
        for ids in np.array_split(every, -(-len(every) // BATCH)):
            samples = store.read(ids).require_whole()
            drawn = plan_task(task, samples.heights, samples.widths, Draws(source.seed, 0, ids))
            plan = change(drawn)
            once = iter([(samples.payloads, *plan.arrays())])
            graph = view_graph(partial(next, once), task, options_of(source, len(ids)))
            sizes = (ids, samples.heights, samples.widths)
            parts.append(Evidence(task, graph.run().cpu().numpy(), plan, *sizes))
    arrays = ("views", "sample_ids", "heights", "widths")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Evidence(task=task, plan=join([part.plan for part in parts]), **joined)


def join(plans: list[TilePlan]) -> TilePlan:
    """Put plans one behind the other."""
    names = [field.name for field in fields(TilePlan)]
    return TilePlan(**{n: np.concatenate([getattr(plan, n) for plan in plans]) for n in names})
