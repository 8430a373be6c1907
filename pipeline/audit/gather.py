"""Evidence for an audit: the views the loader emits for photographs and for content-free images."""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Self

from pipeline.audit.evidence import Evidence
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.loading.data import DataConfig, open_mixture, open_store
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.draws import Draws
from pipeline.pretext.multitask import PretextConfig, Task, plan_task, tasks_of
from pipeline.pretext.normalize import split_views
from pipeline.pretext.plan import TilePlan
from pipeline.shards.manifest import Ledger, Manifest, read_manifest, write_manifest
from pipeline.shards.writer import write_images

# Shapes: N images, B images of a batch, T tiles of an image.


BATCH = 200
_WINDOW = 4096
Progress = Callable[[float, str], None]
"""Gets the share that is done, 0..1, and what is being done."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which views are audited."""

    data: DataConfig
    """Data of one manifest."""
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
        mixture, source.pretext, seed=source.seed, rank_info=RankInfo(0, 1), policy=policy
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
            graph = tile_graph(partial(next, once), [task.tiles], options_of(source, len(ids)))
            sizes = (ids, samples.heights, samples.widths)
            parts.append(Evidence(task, graph.run().cpu().numpy(), plan, *sizes))
    arrays = ("views", "sample_ids", "heights", "widths")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Evidence(task=task, plan=join([part.plan for part in parts]), **joined)


def join(plans: list[TilePlan]) -> TilePlan:
    """Concatenate plans."""
    names = [field.name for field in fields(TilePlan)]
    return TilePlan(**{n: np.concatenate([getattr(plan, n) for plan in plans]) for n in names})


KINDS = ("1/f noise", "white noise", "1/f noise", "constant")
"""Kinds, in turn; 1/f noise has bright and dark regions, as photographs have."""
SUBSAMPLINGS = ("4:4:4", "4:2:0")
QUALITY = 90
_FIELD = 1024
_MOST_PIXELS = 400_000
"""Larger images are reduced, aspect ratio kept: noise is expensive to encode."""
_SAMPLES_PER_SHARD = 200


@dataclass(frozen=True, slots=True)
class Control:
    """Which images without content are made."""

    sizes: NDArray[np.int32]
    """(N, 2), height and width of the images that they stand beside; drawn from."""
    num: int
    """Images; up to one for each shard fewer are written, so that shards are equal."""
    seed: int
    """The same one gives the same images."""
    subsamplings: tuple[str, ...] = SUBSAMPLINGS
    """How chroma is stored, in turn."""
    kinds: tuple[str, ...] = KINDS


@contextmanager
def stored_control(source: Source, control: Control, on_progress: Progress) -> Iterator[Source]:
    """Keep images without content in shards of their own, as long as the block runs."""
    num = control.num
    with tempfile.TemporaryDirectory(prefix="tessera-audit-") as folder:
        out = Path(folder) / "control"
        made = lambda n: on_progress(n / num, f"control: {n} of {num} images made")  # noqa: E731
        write_control(control, out, made)
        yield source.at(str(out))


def write_control(control: Control, out: Path, on_progress: Callable[[int], None]) -> None:
    """Write shards of images without content: what a probe finds in them, the pipeline put there.

    Kinds and chroma samplings take turns, so that there is as much of each sort.

    Args:
        control: Which.
        out: New folder.
        on_progress: Gets the number of images made, now and then.
    """
    rng = np.random.Generator(np.random.Philox(control.seed))
    num, samplings, kinds = control.num, control.subsamplings, control.kinds
    fields = {"white noise": _white(rng), "1/f noise": _pink(rng)}
    drawn = control.sizes[rng.integers(len(control.sizes), size=num)]
    images = []
    for number, (height, width) in enumerate(_bounded(drawn).tolist()):
        kind = kinds[number % len(kinds)]
        pixels = _picture(kind, fields, height, width, rng)
        images.append(encode(pixels, samplings[number // len(kinds) % len(samplings)]))
        if number % _SAMPLES_PER_SHARD == _SAMPLES_PER_SHARD - 1:
            on_progress(number + 1)
    write_set(images, out)


def write_set(images: Sequence[bytes], out: Path) -> None:
    """Write JPEGs into shards of one size in a new folder; a remainder is dropped."""
    num_shards = -(-len(images) // _SAMPLES_PER_SHARD)
    size = len(images) // num_shards
    out.mkdir()
    shards = [
        write_images(out / f"shard-{n:06d}.tar", images[n * size : (n + 1) * size])
        for n in range(num_shards)
    ]
    ledger = Ledger.all_accepted(num_shards * size)
    write_manifest(
        out, Manifest(version=2, shards=tuple(shards), classes=None, ledger=ledger, config={})
    )


def _bounded(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    scale = np.sqrt(np.minimum(1, _MOST_PIXELS / sizes.astype(np.float64).prod(axis=1)))
    bounded: NDArray[np.int64] = np.rint(sizes * scale[:, None]).clip(1).astype(np.int64)
    return bounded


def _picture(
    kind: str,
    fields: dict[str, NDArray[np.uint8]],
    height: int,
    width: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Make an image (height, width, 3); noise is cut out of a field that has no borders."""
    if kind == "constant":
        return np.broadcast_to(rng.integers(256, size=3, dtype=np.uint8), (height, width, 3)).copy()
    field = fields[kind]
    down = (np.arange(height) + rng.integers(_FIELD)) % _FIELD
    right = (np.arange(width) + rng.integers(_FIELD)) % _FIELD
    turned = np.rot90(field, int(rng.integers(4)))
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    cut: NDArray[np.uint8] = turned[down[:, None], right, :][..., rng.permutation(3)]
    return cut


def _white(rng: np.random.Generator) -> NDArray[np.uint8]:
    return _as_pixels(rng.standard_normal((_FIELD, _FIELD, 3)))


def _pink(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make noise whose amplitude falls as 1/f, as that of photographs does, colors correlated."""
    waves = np.fft.rfft2(rng.standard_normal((_FIELD, _FIELD, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(_FIELD)[:, None], np.fft.rfftfreq(_FIELD))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(waves / frequency[..., None], s=(_FIELD, _FIELD), axes=(0, 1))
    return _as_pixels(noise + 2 * noise.mean(axis=2, keepdims=True))


def _as_pixels(noise: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale to mean 128 and deviation 40, gray levels."""
    scaled = (noise - noise.mean()) / noise.std() * 40 + 128
    pixels: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return pixels


def encode(pixels: NDArray[np.uint8], subsampling: str, *, quality: int = QUALITY) -> bytes:
    """Encode pixels (H, W, 3) as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality, subsampling=subsampling)
    return sink.getvalue()
