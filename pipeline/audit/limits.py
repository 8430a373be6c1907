"""What each probe is, and the score from which on its shortcut counts as open."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from typing_extensions import assert_never

from pipeline.audit.chroma import probe_chroma
from pipeline.audit.edges import probe_edges
from pipeline.audit.evidence import Answers, Evidence
from pipeline.audit.position import probe_blocks, probe_borders, probe_places
from pipeline.audit.rotation_cues import probe_turns
from pipeline.audit.tile_statistics import probe_moments, probe_spectrum
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

CONTROL_TOLERANCE = 0.02
"""Lower end of the control's interval that still counts as chance: of some ten intervals one in
four does not hold 0 by chance alone, and noise whose power falls as 1/f continues a little beyond
any gap."""

Name = Literal[
    "edges",
    "moments",
    "chroma",
    "places",
    "blocks",
    "borders",
    "spectrum",
    "turns",
    "draws",
    "codes",
]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A way to win a pretext without understanding the picture."""

    name: Name
    title: str
    measures: str
    """What the score says, in one sentence."""
    limit: float
    """Open where the whole interval lies above this, closed where none of it does."""
    reason: str
    """What the limit stands on."""
    sampled: bool = True
    """Whether it is measured on images; else on all that can be drawn, without an interval."""


EDGES = Shortcut(
    "edges",
    "Edge continuity",
    "How often the best match of borders is the true neighbour of a tile.",
    0.25,
    "gap and jitter leave 0.09 to 0.12 on photographs, tiles without a gap 0.95.",
)
MOMENTS = Shortcut(
    "moments",
    "Color and contrast",
    "How well mean and deviation of two tiles say whether they lie side by side.",
    0.08,
    "tiles normalised on their own leave 0.01 to 0.03 on photographs, from flat regions; fixed "
    "constants leave 0.16 to 0.19.",
)
CHROMA = Shortcut(
    "chroma",
    "Chromatic aberration",
    "How well shifts between color channels say on which side of the lens a tile lies.",
    0.2,
    "channel shifts and gray images leave 0.00 of common lenses, and 0.15 of one that "
    "magnifies red by 0.4 %; without them that one gives 0.9.",
)
PLACES = Shortcut(
    "places",
    "Absolute position",
    "How often a small picture of a single tile names its cell.",
    0.15,
    "skies and grounds give 0.02 to 0.08 in photographs, dark corners 0.23; the control must be 0.",
)
BLOCKS = Shortcut(
    "blocks",
    "JPEG blocks",
    "How well the phase of JPEG's 8 x 8 blocks names a tile's column or row.",
    0.02,
    "a drawn scale leaves 0.00 to 0.01; a jitter without one of eight places gives 0.05, "
    "a fixed grid 0.7.",
)
BORDERS = Shortcut(
    "borders",
    "Borders and padding",
    "How well flat sides, as fill values leave, name a tile's cell or a view's turn.",
    0.1,
    "white grounds give up to 0.05 in pictures of objects; tiles cut beyond the image "
    "0.4, and views turned before the crop 0.2.",
)
SPECTRUM = Shortcut(
    "spectrum",
    "Traces of resampling",
    "How well the high frequencies of tiles answer the pretext.",
    0.08,
    "photographs, sharper in the middle, give 0.03; a patch resampled twice 0.1.",
)
TURNS = Shortcut(
    "turns",
    "Cues of rotation",
    "How often gradients, colors and brightness alone name the turn of a view.",
    0.25,
    "photographs, bright above, give 0.10 to 0.16; the control must be 0, and gives 0.2 "
    "where chroma has half its width.",
)
DRAWS = Shortcut(
    "draws",
    "Random draws",
    "Share of images whose draws another rank repeats, or the effect of uneven, dependent draws.",
    0.01,
    "independent draws give below 0.001; the same seed on every rank gives 1.",
    sampled=False,
)
CODES = Shortcut(
    "codes",
    "Permutation set",
    "Share of permutations that differ from another one in at most a third of the tiles.",
    0.1,
    "sets of the largest minimal distance have none; random sets of 1,000 have 0.4.",
    sampled=False,
)

Probe = Callable[[Evidence, int], Answers]


@dataclass(frozen=True, slots=True)
class Check:
    """A shortcut, and the probe that looks for it in pixels."""

    shortcut: Shortcut
    probe: Probe


_OF_TILES = (
    Check(EDGES, lambda evidence, seed: probe_edges(evidence, seed=seed)),
    Check(MOMENTS, lambda evidence, seed: probe_moments(evidence, seed=seed)),
    Check(CHROMA, lambda evidence, seed: probe_chroma(evidence, seed=seed)),
    Check(PLACES, lambda evidence, seed: probe_places(evidence, seed=seed)),
    Check(BLOCKS, lambda evidence, seed: probe_blocks(evidence, seed=seed)),
    Check(SPECTRUM, lambda evidence, seed: probe_spectrum(evidence, seed=seed)),
)
_BORDERS = Check(BORDERS, lambda evidence, seed: probe_borders(evidence, seed=seed))
_TURNS = Check(TURNS, lambda evidence, seed: probe_turns(evidence, seed=seed))


def checks_of(task: Task) -> tuple[Check, ...]:
    """Return what applies to the views of a task."""
    match task:
        case JigsawConfig() | ContextConfig():
            return (*_OF_TILES, _BORDERS)
        case RotationConfig():
            return (_TURNS, _BORDERS)
        case SupervisedConfig():
            return ()
        case _:
            assert_never(task)
