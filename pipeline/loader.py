"""Order + store + draws + graph -> batches; the whole state is (epoch, step)."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.dali.decode import decode_rgb
from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.dali.whole import whole_graph
from pipeline.draws import Draws
from pipeline.order import Order
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.shards.store import DamageError, Samples, Store

PretextConfig = JigsawConfig
"""Any pretext; becomes a union told apart by `name` when there are several."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step, or one batch of an evaluation."""

    epoch: int
    step: int
    sample_ids: NDArray[np.int64]
    """(B,)."""
    views: Tensor
    """uint8, batch first, as the graph emits them, on the graph's device."""
    labels: NDArray[np.int64]
    """(B, ...): what the pretext asks, or the class numbers in an evaluation."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which share of a step is ours."""

    rank: int
    world_size: int


class PretextLoader:
    """Batches of a pretext, from any position, in the same order on any number of ranks.

    Iterating never ends: epochs follow each other. `state()` is the position behind the last batch
    that was taken, whatever was computed ahead.
    """

    def __init__(
        self, store: Store, order: Order, pretext: PretextConfig, *, seed: int, place: Place
    ) -> None:
        order.lanes_of(place.rank, place.world_size)  # Refuses more ranks than lanes at once.
        self._store, self._order, self._pretext = store, order, pretext
        self._seed, self._place = seed, place
        self._epoch, self._step = 0, 0

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

    def batches(self, options: GraphOptions) -> Iterator[Batch]:
        """Yield batches for ever, from the current position on."""
        plans = (self._plan(epoch, step) for epoch, step in self._positions())
        for batch in _stream(
            plans, lambda feed: tile_graph(feed, self._pretext, options), self._store
        ):
            self._epoch, self._step = self._after(batch.epoch, batch.step)
            yield batch

    def max_batch(self) -> int:
        """Return the size of our share of a step."""
        lanes = self._order.lanes_of(self._place.rank, self._place.world_size)
        return len(lanes) * self._order.config.lane_share

    def _plan(self, epoch: int, step: int) -> "_Planned":
        place = self._place
        ids = self._order.rank_batch(epoch, step, rank=place.rank, world_size=place.world_size)
        samples = self._store.read(ids)
        draws = Draws(self._seed, epoch, ids)
        plan = plan_jigsaw(self._pretext, samples.heights, samples.widths, draws)
        arrays = (samples.payloads, plan.crops, plan.anchors, plan.gray)
        return _Planned(epoch, step, ids, samples, plan.labels, arrays)

    def _positions(self) -> Iterator[tuple[int, int]]:
        epoch, step = self._epoch, self._step
        while True:
            yield epoch, step
            epoch, step = self._after(epoch, step)

    def _after(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch, step + 1) if step + 1 < self._order.steps_per_epoch else (epoch + 1, 0)

    def _identity(self) -> dict[str, Any]:
        config = self._order.config
        return {
            "fingerprint": self._store.manifest.fingerprint,
            "seed": self._seed,
            "global_batch": config.global_batch,
            "num_lanes": config.num_lanes,
            "window": config.window,
        }


def whole_batches(
    store: Store, sample_ids: NDArray[np.int64], options: GraphOptions, *, px: int
) -> Iterator[Batch]:
    """Yield the given samples in the given order, each once, the last batch short.

    A view is the central square of the image, resized to `px`: uint8 (B, px, px, 3).
    """

    def plans() -> Iterator[_Planned]:
        for step, start in enumerate(range(0, len(sample_ids), options.max_batch)):
            ids = sample_ids[start : start + options.max_batch]
            samples = store.read(ids)
            crops = central_squares(samples.heights, samples.widths)
            arrays = (samples.payloads, crops)
            yield _Planned(0, step, ids, samples, samples.labels, arrays)

    yield from _stream(plans(), lambda feed: whole_graph(feed, options, px=px), store)


def central_squares(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the largest central square of each image, int32 (B, 4): top, left, height, width."""
    side = np.minimum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


@dataclass(frozen=True, slots=True)
class _Planned:
    epoch: int
    step: int
    sample_ids: NDArray[np.int64]
    samples: Samples
    labels: NDArray[np.int64]
    arrays: tuple[Arrays, ...]


def _stream(
    plans: Iterator[_Planned], build: Callable[[Feed], Graph], store: Store
) -> Iterator[Batch]:
    """Push plans through a graph that runs ahead; give each batch back beside its plan."""
    ahead: deque[_Planned] = deque()
    damage: list[DamageError] = []

    def feed() -> tuple[Arrays, ...]:
        try:
            planned = next(plans)  # Its StopIteration ends the graph's epoch behind the last batch.
        except DamageError as error:
            damage.append(error)  # Raised below, once the batches before it are delivered.
            raise StopIteration from error
        ahead.append(planned)
        return planned.arrays

    graph = build(feed)
    while True:
        try:
            views = graph.run()
        except StopIteration:
            if damage:
                raise damage[0] from None
            return
        except RuntimeError as error:
            if not ahead:
                raise
            raise DamageError(_blame(ahead[0], store, error)) from error
        done = ahead.popleft()
        yield Batch(done.epoch, done.step, done.sample_ids, views, done.labels)


def _blame(planned: _Planned, store: Store, error: RuntimeError) -> str:
    """Name the samples of a failed batch that do not decode; DALI names none."""
    pairs = zip(planned.sample_ids, planned.samples.payloads, strict=True)
    bad = [int(i) for i, payload in pairs if decode_rgb(payload.tobytes()) is None]
    if not bad:
        return f"the graph failed at epoch {planned.epoch}, step {planned.step}: {error}"
    names = "; ".join(store.describe(sample_id) for sample_id in bad)
    return f"{names}: the image does not decode, though it did when it was sharded."
