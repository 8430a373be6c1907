"""The shortcut audit: every probe on photographs and on images that show nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.audit.evidence import Evidence, ProbeScore, score_of
from pipeline.audit.gather import Control, Progress, Source, gather, stored_control
from pipeline.audit.limits import CODES, CONTROL_TOLERANCE, DRAWS, Shortcut, checks_of
from pipeline.audit.uniformity import draw, probe_codes, probe_draws
from pipeline.config import ConfigError
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import Task, tasks_of
from pipeline.shards.manifest import read_manifest

LEAST_IMAGES = 60
"""Fewer images leave intervals that pass everything."""
LEAST_CONTROL = 1000
"""Least content-free images: they cost little, and a false alarm costs much."""
Finding = Literal["open", "closed", "undecided"]
MOST_TO_DECIDE = 1_000_000
"""A larger number of images is not named: the score lies on its limit."""
# Shares of the time: views and probes on photographs, the same on the control, draws.
_REAL, _CONTROL = 0.5, 0.95


@dataclass(frozen=True, slots=True)
class ShortcutVerdict:
    """What the audit found of one shortcut."""

    task: str
    """Name of the task."""
    shortcut: Shortcut
    score: ProbeScore
    """Score on the images of the manifest."""
    control: ProbeScore | None
    """Score on content-free images; None for probes without pixels."""

    @property
    def finding(self) -> Finding:
        """open: the interval lies above the limit; closed: it ends at or below it; else undecided.

        What was not sampled has no interval, and is never undecided.
        """
        if self.score.low > self.shortcut.limit:
            return "open"
        return "closed" if self.score.high <= self.shortcut.limit else "undecided"

    @property
    def is_bug(self) -> bool:
        """Whether images without content give answers away: the pipeline put them there."""
        return self.control is not None and self.control.low > CONTROL_TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether the shortcut is known to be closed, and the control is at chance."""
        return self.finding == "closed" and not self.is_bug

    @property
    def is_bad(self) -> bool:
        """Whether something is known to be wrong."""
        return self.finding == "open" or self.is_bug

    def images_to_decide(self, images: int) -> int | None:
        """Estimate how many images would decide, from the interval's width on `images`.

        The interval narrows with the root of the number of images; where the score stays, it ends
        at the limit at the number returned, rounded up to two digits.

        Returns:
            None where it is decided; `MOST_TO_DECIDE` where as many or more would be needed.
        """
        if self.finding != "undecided":
            return None
        score, limit = self.score, self.shortcut.limit
        reach = score.high - score.value if score.value <= limit else score.value - score.low
        away = abs(score.value - limit)
        if away * MOST_TO_DECIDE**0.5 <= reach * images**0.5:
            return MOST_TO_DECIDE
        needed = math.ceil(images * (reach / away) ** 2)
        step: int = 10 ** max(0, len(str(needed)) - 2)
        rounded: int = -(-needed // step) * step
        return rounded


@dataclass(frozen=True, slots=True)
class Audit:
    """All that was found."""

    fingerprint: str
    """Fingerprint of the manifest."""
    seed: int
    images: int
    control_images: int
    verdicts: tuple[ShortcutVerdict, ...]

    @property
    def ok(self) -> bool:
        """Whether every shortcut is known to be closed, and the control at chance."""
        return all(verdict.ok for verdict in self.verdicts)

    @property
    def bad(self) -> list[ShortcutVerdict]:
        """Verdicts that say that something is wrong."""
        return [verdict for verdict in self.verdicts if verdict.is_bad]

    @property
    def undecided(self) -> list[ShortcutVerdict]:
        """Verdicts for which there were too few images, and that show no bug."""
        return [v for v in self.verdicts if v.finding == "undecided" and not v.is_bug]

    def names(self) -> list[str]:
        """Name the verdicts: by shortcut, with the task before it where there are several."""
        if len({verdict.task for verdict in self.verdicts}) == 1:
            return [verdict.shortcut.name for verdict in self.verdicts]
        return [f"{verdict.task}.{verdict.shortcut.name}" for verdict in self.verdicts]

    def listed(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        pairs = zip(self.names(), self.verdicts, strict=True)
        return {
            "ok": self.ok,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "images": self.images,
            "control_images": self.control_images,
            "control_tolerance": CONTROL_TOLERANCE,
            "shortcuts": {name: _listed(verdict, self.images) for name, verdict in pairs},
        }


def run_audit(source: Source, num: int, on_progress: Progress) -> Audit:
    """Audit a pretext on at most `num` images of some shards, and on no fewer without content.

    Raises:
        ConfigError: The shards hold too few images, or are not there.
        DamageError: A sample is damaged, and the policy of the data is to stop.
    """
    assert source.data.manifest is not None
    manifest = read_manifest(source.data.manifest)
    if manifest.num_samples < LEAST_IMAGES:
        raise ConfigError(
            f"manifest (={source.data.manifest}) holds {manifest.num_samples} images, too few for "
            f"an audit: at least {LEAST_IMAGES} are needed for intervals that say anything; give "
            "more shards."
        )
    real = gather(source, num, _part(on_progress, 0, _REAL / 2))
    images = len(real[0].views)
    sizes = np.stack([real[0].heights, real[0].widths], axis=1)
    scores = _score_all(real, source.seed, _part(on_progress, _REAL / 2, _REAL))
    del real  # Views of all tasks take hundreds of MB.
    half = _part(on_progress, _REAL, (_REAL + _CONTROL) / 2)
    wanted = Control(sizes, max(images, LEAST_CONTROL), source.seed)
    control = _gather_control(source, wanted, half)
    control_images = len(control[0].views)
    last = _part(on_progress, (_REAL + _CONTROL) / 2, _CONTROL)
    controls = _score_all(control, source.seed, last)
    verdicts = []
    for task, found, beside in zip(tasks_of(source.pretext), scores, controls, strict=True):
        shortcuts = [check.shortcut for check in checks_of(task)]
        rows = zip(shortcuts, found, beside, strict=True)
        verdicts += [
            ShortcutVerdict(task.name, shortcut, s, c) for shortcut, s, c in rows if s.answers
        ]
        verdicts += _without_pixels(task, source.seed)
        on_progress(_CONTROL, f"{task.name}: draws")
    on_progress(1.0, "done")
    return Audit(manifest.fingerprint, source.seed, images, control_images, tuple(verdicts))


def _gather_control(
    source: Source, control: Control, on_progress: Progress
) -> tuple[Evidence, ...]:
    with stored_control(source, control, _part(on_progress, 0, 0.5)) as there:
        return gather(there, control.num, _part(on_progress, 0.5, 1))


def _score_all(
    evidence: Sequence[Evidence], seed: int, on_progress: Progress
) -> list[list[ProbeScore]]:
    scores: list[list[ProbeScore]] = []
    num = sum(len(checks_of(one.task)) for one in evidence)
    for one in evidence:
        scores.append([])
        for check in checks_of(one.task):
            done = sum(map(len, scores))
            on_progress(done / num, f"{one.task.name}: {check.shortcut.title.lower()}")
            scores[-1].append(score_of(check.probe(one, seed), seed=seed))
    return scores


def _without_pixels(task: Task, seed: int) -> list[ShortcutVerdict]:
    found = [ShortcutVerdict(task.name, DRAWS, probe_draws(draw(task, seed=seed)), None)]
    if isinstance(task, JigsawConfig):
        found.append(ShortcutVerdict(task.name, CODES, probe_codes(permutations_of(task)), None))
    return found


def _listed(verdict: ShortcutVerdict, images: int) -> dict[str, Any]:
    score, control = verdict.score, verdict.control
    return {
        "task": verdict.task,
        "measures": verdict.shortcut.measures,
        "score": score.value,
        "interval": [score.low, score.high],
        "answers": score.answers,
        "control_score": control.value if control else None,
        "control_interval": [control.low, control.high] if control else None,
        "limit": verdict.shortcut.limit,
        "reason": verdict.shortcut.reason,
        "ok": verdict.ok,
        "verdict": verdict.finding,
        "open": verdict.finding == "open",
        "images_to_decide": verdict.images_to_decide(images),
        "bug": verdict.is_bug,
        "detail": score.detail,
        "control_detail": control.detail if control else None,
    }


def _part(on_progress: Progress, start: float, end: float) -> Progress:
    return lambda share, note: on_progress(start + (end - start) * share, note)
