"""The audit as one HTML page that stands alone, with the look of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import write_atomic
from pipeline.audit.audit import Audit
from pipeline.audit.evidence import ProbeScore
from pipeline.audit.gather import Source
from pipeline.audit.limits import CONTROL_TOLERANCE
from pipeline.audit.planted import PlantedBug
from pipeline.pretext.multitask import tasks_of
from pipeline.remote.location import redact_url as without_secrets
from training.report.charts import Box, Tick, number, ticks
from training.report.templates import figure, page_environment

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 460.0, 150.0, 16.0, 8.0, 24.0
_ROW, _THICK, _APART = 40.0, 9.0, 13.0
_LEAST_REACH = 0.3


@dataclass(frozen=True, slots=True)
class ScoreBar:
    """One score: a bar from 0, and its interval."""

    kind: str
    """Its class in the style sheet: now, or beside."""
    y: float
    """Middle of the bar."""
    left: float
    width: float
    low: float
    high: float
    end: float
    """x of the score."""


@dataclass(frozen=True, slots=True)
class Row:
    """One shortcut."""

    label: str
    y: float
    """Middle of the row."""
    beams: tuple[ScoreBar, ...]
    limit: float
    """x."""
    is_bad: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of several shortcuts on one scale."""

    title: str
    box: Box
    x_ticks: tuple[Tick, ...]
    zero: float
    """x of a blind guess."""
    rows: tuple[Row, ...]
    thick: float
    words: str
    """What the chart shows, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    now: ProbeScore
    beside: ProbeScore | None
    limit: float
    is_bad: bool


def write_page(path: Path, found: Audit, catches: Sequence[PlantedBug], source: Source) -> None:
    """Write the page of an audit, and of the planted bugs where there are any."""
    environment = page_environment(Path(__file__).parent)
    environment.filters["number"] = number
    page = environment.get_template("audit.html").render(
        audit=found,
        named=list(zip(found.names(), found.verdicts, strict=True)),
        charts=[_task_chart(found, task.name) for task in tasks_of(source.pretext)],
        catches=catches,
        catch_chart=_catch_chart(catches) if catches else None,
        pretext=source.pretext,
        manifest=without_secrets(source.data.manifest or ""),
        tolerance=CONTROL_TOLERANCE,
    )
    write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))


def chart_of(title: str, lines: Sequence[_Line]) -> Chart:
    """Place the bars of some shortcuts."""
    scores = [s for line in lines for s in (line.now, line.beside) if s is not None]
    reach = max(_LEAST_REACH, *(s.high for s in scores), *(line.limit for line in lines))
    low = min(0.0, *(s.low for s in scores))
    x_values = [v for v in ticks(low, reach, at_most=6) if v >= low - 0.05]
    low, reach = min(low, x_values[0]), max(reach, x_values[-1])
    box = Box(
        _WIDTH,
        _TOP + _ROW * len(lines) + _BOTTOM,
        _LEFT,
        _TOP,
        _WIDTH - _RIGHT,
        _TOP + _ROW * len(lines),
    )

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * (value - low) / (reach - low)

    def beam(kind: str, score: ProbeScore, y: float) -> ScoreBar:
        start, end = sorted((x(0), x(score.value)))
        return ScoreBar(kind, y, start, end - start, x(score.low), x(score.high), x(score.value))

    rows = []
    for position, line in enumerate(lines):
        y = box.top + _ROW * (position + 0.5)
        shift = _APART / 2 if line.beside else 0
        beams = [beam("now", line.now, y - shift)]
        if line.beside:
            beams.append(beam("beside", line.beside, y + shift))
        rows.append(Row(line.label, y, tuple(beams), x(line.limit), line.is_bad))
    marks = tuple(Tick(x(v), number(v)) for v in x_values)
    words = "; ".join(
        f"{line.label}: {figure(line.now.value)}, limit {line.limit:g}" for line in lines
    )
    return Chart(title, box, marks, x(0), tuple(rows), _THICK, words)


def _task_chart(found: Audit, task: str) -> Chart:
    return chart_of(
        task,
        [
            _Line(v.shortcut.title, v.score, v.control, v.shortcut.limit, not v.ok)
            for v in found.verdicts
            if v.task == task
        ],
    )


def _catch_chart(catches: Sequence[PlantedBug]) -> Chart:
    lines = [
        _Line(f"{n}. {c.shortcut.name}", c.planted, c.without, c.limit, not c.caught)
        for n, c in enumerate(catches, start=1)
    ]
    return chart_of("planted bugs", lines)
