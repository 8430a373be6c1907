"""Bugs of known pipelines and countermeasures turned off, planted to show that the audit sees them.

Each one is planted in the default jigsaw, context or rotation, whatever the run asks.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.chroma import add_aberration
from pipeline.audit.evidence import Evidence, ProbeScore, score_of
from pipeline.audit.gather import (
    QUALITY,
    SUBSAMPLINGS,
    Control,
    Progress,
    Source,
    emit,
    encode,
    gather,
    stored_control,
    write_set,
)
from pipeline.audit.limits import (
    BLOCKS,
    BORDERS,
    CHROMA,
    CODES,
    CONTROL_TOLERANCE,
    DRAWS,
    EDGES,
    MOMENTS,
    PLACES,
    SPECTRUM,
    TURNS,
    Shortcut,
    checks_of,
)
from pipeline.audit.uniformity import draw, probe_codes, probe_draws
from pipeline.loading.data import open_store
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import Task
from pipeline.pretext.plan import TilePlan
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig, plan_rotation
from pipeline.reference import resize

# Shapes: N images, T tiles, H/W view size, K permutations.


_BEYOND_PX = 2
_CORNER = 0.6
"""Share of the light that a corner of the crop loses."""
_REDUCED = 0.5
"""Share of its side that a patch is reduced to."""


@dataclass(frozen=True, slots=True)
class StoredAs:
    """How a JPEG is encoded."""

    subsampling: str
    quality: int = QUALITY


def crop_beyond(views: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """Fill with zeros what tiles of the last row and column have beyond the image."""
    planted = views.copy()
    planted[:, grid - 1 :: grid, :, -_BEYOND_PX:] = 0
    planted[:, -grid:, -_BEYOND_PX:] = 0
    return planted


def darken_corners(evidence: Evidence) -> NDArray[np.uint8]:
    """Darken each pixel by the square of its distance from the middle of the crop."""
    tiles = evidence.task.tiles
    reach = np.arange(tiles.tile_px)
    places = evidence.plan.anchors[..., None] + reach  # (N, T, 2, H)
    squares = (places / tiles.crop_px * 2 - 1) ** 2
    loss = (squares[:, :, 0, :, None] + squares[:, :, 1, None, :]) / 2
    light = (1 - _CORNER * loss).astype(np.float32)
    return np.stack(
        [
            (view * shade[..., None]).astype(np.uint8)
            for view, shade in zip(evidence.views, light, strict=True)
        ]
    )


def skip_last_place(plan: TilePlan, task: JigsawConfig) -> TilePlan:
    """Draw the jitter of tiles from all places but the last, as `randint(0, slack)` does."""
    rng = np.random.Generator(np.random.Philox(int(plan.labels.sum())))
    jitter = rng.integers(task.slack_px, size=plan.anchors.shape)
    return replace(plan, anchors=(task.cells + jitter).astype(np.int32))


def reduce_first(plan: TilePlan) -> TilePlan:
    """Reduce and enlarge the first patch of each image, and no other."""
    sides = np.full_like(plan.sides, plan.sides.max())
    sides[:, 0] = round(_REDUCED * int(plan.sides.max()))
    return replace(plan, sides=sides)


def alike_in_pairs(perms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give every second permutation (K, T) the order of the one before it, two tiles exchanged."""
    planted = perms.copy()
    half = len(perms) // 2
    planted[1 : 2 * half : 2] = perms[: 2 * half : 2]
    planted[1 : 2 * half : 2, :2] = perms[: 2 * half : 2, 1::-1]
    return planted


def turn_before_crop(source: Source, task: RotationConfig, num: int) -> Evidence:
    """Turn whole images inside their own frame, black where they do not reach, then cut squares.

    Returns:
        Views (N, 4, H, H, 3), the four turns of each image.
    """
    payloads = photographs(source, num)
    views = np.empty((len(payloads), len(QUARTER_TURNS), task.crop_px, task.crop_px, 3), np.uint8)
    images = [Image.open(io.BytesIO(payload)).convert("RGB") for payload in payloads]
    widths, heights = np.array([image.size for image in images], np.int32).T
    ids = np.arange(len(images))
    plan = plan_rotation(task, heights, widths, Draws(source.seed, 0, ids))
    for n, image in enumerate(images):
        top, left, height, width = plan.crops[n].tolist()
        for turn, degrees in enumerate(QUARTER_TURNS):
            turned = np.asarray(image.rotate(degrees))
            views[n, turn] = resize(turned[top : top + height, left : left + width], task.crop_px)
    return Evidence(task, views, plan, ids, heights, widths)


def presized(pixels: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Cut the central square of an image, and resize it to the size at which it will be cut."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return resize(pixels[top : top + side, left : left + side], px)


def restored(
    source: Source,
    num: int,
    out: Path,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    stored_as: StoredAs,
) -> None:
    """Store changed images as JPEGs in new shards."""
    images = []
    for payload in photographs(source, num):
        with Image.open(io.BytesIO(payload)) as image:
            pixels = change(np.asarray(image.convert("RGB")))
            images.append(encode(pixels, stored_as.subsampling, quality=stored_as.quality))
    write_set(images, out)


def photographs(source: Source, num: int) -> list[bytes]:
    """Read the encoded images of some shards, those that come first."""
    assert source.data.manifest is not None
    with closing(open_store(source.data.manifest, source.data.cache)) as store:
        ids = np.arange(min(num, store.manifest.num_samples))
        return [bytes(payload) for payload in store.read(ids).require_whole().payloads]


MOST_IMAGES = 1000
_JIGSAW = JigsawConfig(name="jigsaw")
_CONTEXT = ContextConfig(name="context")
_ROTATION = RotationConfig(name="rotation")
_SIZES = np.array([[375, 500], [500, 375]], np.int32)
"""Height and width of the images without content that bugs are planted in."""
_LENS = 1.004
"""Red is magnified by this: about what Doersch, Gupta and Efros 2015 call aberration."""


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """One planted bug."""

    bug: str
    """What was done."""
    shortcut: Shortcut
    """Whose probe is named to find it."""
    without: ProbeScore
    """Before."""
    planted: ProbeScore
    """After."""
    on_control: bool = False
    """Whether both were measured on images without content."""

    @property
    def limit(self) -> float:
        """What the lower end of an interval must not exceed."""
        return CONTROL_TOLERANCE if self.on_control else self.shortcut.limit

    @property
    def caught(self) -> bool:
        """Whether the audit passes without the bug, and fails with it."""
        return self.without.low <= self.limit < self.planted.low


def prove(source: Source, num: int, on_progress: Progress) -> tuple[PlantedBug, ...]:
    """Plant every bug in views of at most `num` images, at most `MOST_IMAGES`.

    Raises:
        ConfigError: The shards are not there.
        DamageError: A sample is damaged.
    """
    num = min(num, MOST_IMAGES)
    prover = _Prover(source, num)
    steps: list[tuple[str, Callable[[], list[PlantedBug]]]] = [
        ("geometry and normalization", prover.geometry),
        ("chromatic aberration", prover.lens),
        ("JPEG blocks", prover.blocks),
        ("resampling", prover.resampling),
        ("rotation", prover.rotation),
        ("draws and permutations", prover.draws),
    ]
    found: list[PlantedBug] = []
    for n, (name, step) in enumerate(steps):
        on_progress(n / len(steps), f"planting: {name}")
        found += step()
    on_progress(1.0, "done")
    return tuple(found)


def listed(catch: PlantedBug) -> dict[str, Any]:
    """Return a catch as JSON holds it."""
    before, after = catch.without, catch.planted
    return {
        "bug": catch.bug,
        "probe": catch.shortcut.name,
        "score_without": before.value,
        "interval_without": [before.low, before.high],
        "score_with": after.value,
        "interval_with": [after.low, after.high],
        "on_control": catch.on_control,
        "limit": catch.limit,
        "caught": catch.caught,
    }


@dataclass(frozen=True, slots=True)
class _Prover:
    source: Source
    num: int

    def geometry(self) -> list[PlantedBug]:
        plain = self._views(_JIGSAW)
        no_gap = self._views(_jigsaw(tile_px=_JIGSAW.cell_px, channel_shift_px=0))
        fixed = replace(plain, task=_jigsaw(normalization="fixed"))
        beyond = replace(plain, views=crop_beyond(plain.views, _JIGSAW.grid))
        dark = replace(plain, views=darken_corners(plain))
        return [
            self._catch("no gap: a tile is its cell", EDGES, plain, no_gap),
            self._catch("the same constants normalize all tiles", MOMENTS, plain, fixed),
            self._catch("tiles cut past the image, zeros beyond", BORDERS, plain, beyond),
            self._catch("a lens that darkens corners", PLACES, plain, dark),
        ]

    def lens(self) -> list[PlantedBug]:
        with self._stored(
            lambda pixels: add_aberration(pixels, _LENS), StoredAs("4:4:4")
        ) as source:
            guarded = _views(source, _JIGSAW, self.num)
            bare = _views(source, _jigsaw(gray_probability=0, channel_shift_px=0), self.num)
        bug = "a lens of 0.4 %, neither gray nor channel shifts"
        return [self._catch(bug, CHROMA, guarded, bare)]

    def blocks(self) -> list[PlantedBug]:
        whole: dict[str, Any] = {"min_scale": 1, "max_scale": 1, "channel_shift_px": 0}
        grid = _jigsaw(**whole, tile_px=_JIGSAW.cell_px)
        eight = _jigsaw(**whole, tile_px=_JIGSAW.cell_px - 7)  # Places that a tile can take.
        # The quality of the web.
        stored_as = StoredAs("4:2:0", quality=75)
        with self._stored(lambda pixels: presized(pixels, _JIGSAW.crop_px), stored_as) as source:
            drawn_scale = _views(source, _JIGSAW, self.num)
            fixed_grid = _views(source, grid, self.num)
            even = emit(source, eight, self.num, lambda plan: plan)
            uneven = emit(source, eight, self.num, lambda plan: skip_last_place(plan, eight))
        stored = f"JPEGs stored at {_JIGSAW.crop_px} px"
        return [
            self._catch(f"{stored}, a fixed grid", BLOCKS, drawn_scale, fixed_grid),
            self._catch(f"{stored}, jitter without its last place", BLOCKS, even, uneven),
        ]

    def resampling(self) -> list[PlantedBug]:
        plain = self._views(_CONTEXT)
        reduced = emit(self.source, _CONTEXT, self.num, reduce_first)
        return [self._catch("the first patch alone is reduced", SPECTRUM, plain, reduced)]

    def rotation(self) -> list[PlantedBug]:
        upright = self._views(_ROTATION)
        turned = turn_before_crop(self._source_of(_ROTATION), _ROTATION, self.num)
        with self._blank(SUBSAMPLINGS) as source:
            even = _views(source, _ROTATION, MOST_IMAGES)
        with self._blank(("4:2:2",)) as source:
            halved = _views(source, _ROTATION, MOST_IMAGES)
        stored = "chroma stored at half its width (4:2:2)"
        return [
            self._catch("turned before the crop, black bars", BORDERS, upright, turned),
            self._catch(stored, TURNS, even, halved, on_control=True),
        ]

    def draws(self) -> list[PlantedBug]:
        seed = self.source.seed
        own, same = draw(_JIGSAW, seed=seed), draw(_JIGSAW, seed=seed, keyed_by_slot=True)
        perms = permutations_of(_JIGSAW)
        return [
            PlantedBug("the same seed on every rank", DRAWS, probe_draws(own), probe_draws(same)),
            PlantedBug(
                "pairs of permutations that differ in two tiles",
                CODES,
                probe_codes(perms),
                probe_codes(alike_in_pairs(perms)),
            ),
        ]

    def _source_of(self, task: Task) -> Source:
        return replace(self.source, pretext=task)

    def _views(self, task: Task) -> Evidence:
        return _views(self.source, task, self.num)

    def _catch(
        self,
        bug: str,
        shortcut: Shortcut,
        without: Evidence,
        planted: Evidence,
        *,
        on_control: bool = False,
    ) -> PlantedBug:
        both = (without, planted)
        before, after = (_score(evidence, shortcut, self.source.seed) for evidence in both)
        return PlantedBug(bug, shortcut, before, after, on_control)

    @contextmanager
    def _blank(self, subsamplings: tuple[str, ...]) -> Iterator[Source]:
        control = Control(_SIZES, MOST_IMAGES, self.source.seed, subsamplings)
        with stored_control(self.source, control, lambda share, note: None) as source:
            yield source

    @contextmanager
    def _stored(
        self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], stored_as: StoredAs
    ) -> Iterator[Source]:
        """Store changed images as shards of their own, as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="tessera-audit-") as folder:
            out = Path(folder) / "planted"
            restored(self.source, self.num, out, change, stored_as)
            yield self.source.at(str(out))


def _jigsaw(**changes: Any) -> JigsawConfig:
    return JigsawConfig(name="jigsaw", **changes)


def _views(source: Source, task: Task, num: int) -> Evidence:
    (evidence,) = gather(replace(source, pretext=task), num, lambda share, note: None)
    return evidence


def _score(evidence: Evidence, shortcut: Shortcut, seed: int) -> ProbeScore:
    (probe,) = (c.probe for c in checks_of(evidence.task) if c.shortcut is shortcut)
    return score_of(probe(evidence, seed), seed=seed)
