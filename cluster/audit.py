"""`tessera audit`: the shortcut audit, on the screen, as a page and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.screen import ConfigFile, JsonFile, Manifest, Overrides, bar, load_run, say
from pipeline.atomic import write_atomic, write_json
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path, redact_url

if TYPE_CHECKING:
    from pipeline.audit.audit import Audit, ShortcutVerdict
    from pipeline.audit.evidence import ProbeScore
    from pipeline.audit.gather import Progress, Source
    from pipeline.audit.limits import Shortcut
    from pipeline.audit.planted import PlantedBug
    from training.report.charts import Box, Tick

WIDTH = 100
"""Columns of the tables."""
PAGE, JSON = "audit.html", "audit.json"

_CHART_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 460.0, 150.0, 16.0, 8.0, 24.0
_ROW, _THICKNESS, _SPACING = 40.0, 9.0, 13.0
_MIN_REACH = 0.3
_COLOURS = {
    "closed": "green",
    "undecided": "yellow",
    "open": "bold red",
    "pipeline bug": "bold red",
}


def audit(  # noqa: PLR0913 - one for each option
    config: ConfigFile,
    manifest: Manifest,
    overrides: Overrides = None,
    images: Annotated[
        int, typer.Option(min=1, help="Maximum number of images; each is shown once.")
    ] = 2000,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for audit.html and audit.json.")
    ] = Path("audit"),
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Also plant known bugs, turn countermeasures off, and show that each is caught.",
        ),
    ] = False,
    allow_undecided: Annotated[
        bool,
        typer.Option(
            "--allow-undecided",
            help="End with 0 where nothing is open but the images are too few to close it, too.",
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Test whether low-level statistics alone solve the pretext, without the picture.

    Simple probes look at what the loader really emits, on images of the shards and on images
    without content. The exit code is 1 if a shortcut is open, if the pipeline itself gives answers
    away, or if the images are too few to decide.

    Example: tessera audit configs/demo/pretrain.yaml shards/ --images 500
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    wanted = AuditRequest(images, prove, allow_undecided, out, json_file)
    if not audit_shards(source_of(config, manifest, overrides), wanted, console):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """Options of an audit."""

    images: int
    """Maximum."""
    prove: bool
    """Whether bugs are planted, too."""
    allow_undecided: bool
    """Whether shortcuts may be undecided."""
    out: Path
    """Folder for the page and the JSON."""
    json_file: Path | None


def source_of(config: Path, manifest: str, overrides: Sequence[str] | None) -> "Source":
    """Combine the pretext and seed of a run with the shards of a manifest.

    Raises:
        ConfigError: The config has no pretext, or there are no shards.
    """
    run = load_run(config, overrides)
    from pipeline.audit.gather import Source
    from pipeline.pretext.multitask import tasks_of
    from pipeline.pretext.supervised import SupervisedConfig
    from pipeline.shards.manifest import FILE_NAME

    if run.pretext is None:
        raise ConfigError(f"pretext is missing in {config}: there is nothing to audit without it.")
    if any(isinstance(task, SupervisedConfig) for task in tasks_of(run.pretext)):
        raise ConfigError(
            f"pretext (={run.pretext.name}) predicts human labels, which no shortcut of the "
            "pipeline gives away: there is nothing to audit; give a pretext without supervised."
        )
    folder = None if is_remote(manifest) else local_path(manifest)
    if folder is not None and not folder.exists():
        raise ConfigError(
            f"manifest (={manifest}) does not exist; give a folder of shards, as `tessera shard` "
            "and `tessera index` make it."
        )
    if folder is not None and folder.is_dir() and not (folder / FILE_NAME).exists():
        raise ConfigError(
            f"folder (={manifest}) holds no {FILE_NAME}; give a folder of shards, as `tessera "
            "shard` and `tessera index` make it."
        )
    alone = {"manifest": manifest, "mixture": None, "stream": None}
    return Source(run.data.model_copy(update=alone), run.pretext, run.seed)


def audit_shards(source: "Source", wanted: AuditRequest, console: Console) -> bool:
    """Run the audit, print its findings, and write page and JSON.

    Returns:
        Whether every shortcut is closed (or undecided, where that is allowed), the control is at
        chance, and every planted bug was caught.

    Raises:
        ConfigError: There are too few images, or the folder for the page is a file.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    from pipeline.audit.audit import run_audit
    from pipeline.audit.planted import listed, prove

    if wanted.out.exists() and not wanted.out.is_dir():
        raise ConfigError(f"out (={wanted.out}) is a file; give a folder for the page.")
    with bar(console, "audit", counts=False) as progress:
        found = run_audit(source, wanted.images, _in_percent(progress.update))
    console.print(table_of(found))
    catches: tuple[PlantedBug, ...] = ()
    if wanted.prove:
        with bar(console, "prove", counts=False) as progress:
            catches = prove(source, wanted.images, _in_percent(progress.update))
        console.print(catch_table(catches))
    missed = [catch for catch in catches if not catch.caught]
    result = {**found.listed(), "ok": found.ok and not missed}
    if catches:
        result["planted"] = [listed(catch) for catch in catches]
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_page(wanted.out / PAGE, found, catches, source)
    for path in (wanted.out / JSON, wanted.json_file):
        if path is not None:
            write_json(path, result)
    say(console, f"page: {wanted.out / PAGE}, figures: {wanted.out / JSON}")
    is_bad = bool(found.bad or missed)
    colour = "red" if is_bad else "yellow" if found.undecided else ""
    console.print(Text(last_line(found, missed, len(catches)), colour), soft_wrap=True)
    return not is_bad and (wanted.allow_undecided or not found.undecided)


def table_of(found: "Audit") -> Table:
    """Return the table of shortcuts."""
    table = Table(width=WIDTH, caption=_caption(found))
    table.add_column("shortcut", overflow="fold")
    for name in ("score", "95 %", "control", "95 %", "limit"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for name, verdict in zip(found.names(), found.verdicts, strict=True):
        score, control = verdict.score, verdict.control
        table.add_row(
            name,
            _figure(score.value),
            _interval(score, verdict.shortcut),
            _figure(control.value) if control else "",
            _interval(control, verdict.shortcut) if control else "",
            f"{verdict.shortcut.limit:g}",
            Text(verdict_words(verdict), _COLOURS[verdict_words(verdict)]),
        )
    return table


def catch_table(catches: Sequence["PlantedBug"]) -> Table:
    """Return the table of planted bugs."""
    table = Table(width=WIDTH, caption="score of the named probe, without and with the bug")
    table.add_column("planted", overflow="fold")
    table.add_column("probe")
    for name in ("without", "with", "95 %", "limit"):
        table.add_column(name, justify="right")
    table.add_column("caught")
    for catch in catches:
        table.add_row(
            catch.bug,
            catch.shortcut.name,
            _figure(catch.without.value),
            _figure(catch.planted.value),
            _interval(catch.planted, catch.shortcut),
            f"{catch.limit:g}",
            Text("yes", "green") if catch.caught else Text("no", "bold red"),
        )
    return table


def verdict_words(verdict: "ShortcutVerdict") -> str:
    """Return a verdict in a word or two."""
    return "pipeline bug" if verdict.is_bug else verdict.finding


def to_decide(verdict: "ShortcutVerdict", images: int) -> str:
    """Say how many images would decide what `images` did not; empty where it is decided."""
    from pipeline.audit.audit import MOST_TO_DECIDE

    num = verdict.images_to_decide(images)
    if num is None:
        return ""
    about = "more than" if num >= MOST_TO_DECIDE else "about"
    return f"{about} {num:,} images would decide"


def last_line(found: "Audit", missed: Sequence["PlantedBug"], planted: int) -> str:
    """Return the findings as one line."""
    named = list(zip(found.names(), found.verdicts, strict=True))
    parts = []
    is_open = [
        f"{n} {_figure(v.score.value)} (limit {v.shortcut.limit:g})"
        for n, v in named
        if v.finding == "open"
    ]
    undecided = [
        f"{n} {_figure(v.score.value)} ({_ends(v.score)}, limit {v.shortcut.limit:g}; "
        f"{to_decide(v, found.images)})"
        for n, v in named
        if v in found.undecided
    ]
    bugs = [f"{n} {_figure(v.control.value)}" for n, v in named if v.is_bug and v.control]
    if is_open:
        parts.append(f"open: {', '.join(is_open)}")
    if bugs:
        parts.append(f"given away by the pipeline, on images without content: {', '.join(bugs)}")
    if missed:
        parts.append(f"not caught: {', '.join(catch.bug for catch in missed)}")
    if undecided:
        parts.append(f"undecided on {found.images:,} images: {', '.join(undecided)}")
    if parts:
        return "; ".join(parts)
    proof = f", and all {planted} planted bugs were caught" if planted else ""
    return f"every shortcut is closed: {len(named)} probes on {found.images:,} images{proof}"


def _ends(score: "ProbeScore") -> str:
    return f"{score.low:.3f} .. {score.high:.3f}"


def _caption(found: "Audit") -> str:
    return (
        f"0 is a blind guess, 1 always right; {found.images:,} images of {found.fingerprint}, "
        f"{found.control_images:,} without content"
    )


def _interval(score: "ProbeScore", shortcut: "Shortcut") -> str:
    return _ends(score) if shortcut.sampled else "exact"


def _in_percent(update: Callable[[float, float, str], None]) -> "Progress":
    return lambda share, note: update(100 * share, 100, note)


@dataclass(frozen=True, slots=True)
class ScoreBar:
    """One score: a bar from 0, and its interval."""

    kind: str
    """Class in the style sheet: now or beside."""
    y: float
    """Centre of the bar."""
    left: float
    width: float
    low: float
    high: float
    end: float
    """x coordinate of the score."""


@dataclass(frozen=True, slots=True)
class Row:
    """One shortcut."""

    label: str
    y: float
    """Centre of the row."""
    beams: tuple[ScoreBar, ...]
    limit: float
    """x coordinate."""
    is_bad: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of several shortcuts on one scale."""

    title: str
    box: "Box"
    x_ticks: tuple["Tick", ...]
    zero: float
    """x coordinate of a blind guess."""
    rows: tuple[Row, ...]
    thick: float
    words: str
    """Text alternative."""


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    now: "ProbeScore"
    beside: "ProbeScore | None"
    limit: float
    is_bad: bool


def write_page(
    path: Path, found: "Audit", catches: Sequence["PlantedBug"], source: "Source"
) -> None:
    """Write the page of an audit, and of its planted bugs if there are any."""
    from pipeline.audit.limits import CONTROL_TOLERANCE
    from pipeline.pretext.multitask import tasks_of
    from training.report.charts import number
    from training.report.templates import page_environment

    environment = page_environment(Path(__file__).parent)
    environment.filters["number"] = number
    environment.filters["verdict"] = verdict_words
    environment.filters["to_decide"] = lambda verdict: to_decide(verdict, found.images)
    page = environment.get_template("audit.html").render(
        audit=found,
        named=list(zip(found.names(), found.verdicts, strict=True)),
        charts=[_task_chart(found, task.name) for task in tasks_of(source.pretext)],
        catches=catches,
        catch_chart=_catch_chart(catches) if catches else None,
        pretext=source.pretext,
        manifest=redact_url(source.data.manifest or ""),
        tolerance=CONTROL_TOLERANCE,
    )
    write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))


def chart_of(title: str, lines: Sequence[_Line]) -> Chart:
    """Lay out the bars of some shortcuts."""
    from training.report.charts import Box, Tick, number, ticks
    from training.report.templates import figure

    scores = [s for line in lines for s in (line.now, line.beside) if s is not None]
    reach = max(_MIN_REACH, *(s.high for s in scores), *(line.limit for line in lines))
    low = min(0.0, *(s.low for s in scores))
    x_values = [v for v in ticks(low, reach, at_most=6) if v >= low - 0.05]
    low, reach = min(low, x_values[0]), max(reach, x_values[-1])
    box = Box(
        _CHART_WIDTH,
        _TOP + _ROW * len(lines) + _BOTTOM,
        _LEFT,
        _TOP,
        _CHART_WIDTH - _RIGHT,
        _TOP + _ROW * len(lines),
    )

    def x(value: float) -> float:
        return box.left + (box.right - box.left) * (value - low) / (reach - low)

    def beam(kind: str, score: "ProbeScore", y: float) -> ScoreBar:
        start, end = sorted((x(0), x(score.value)))
        return ScoreBar(kind, y, start, end - start, x(score.low), x(score.high), x(score.value))

    rows = []
    for position, line in enumerate(lines):
        y = box.top + _ROW * (position + 0.5)
        shift = _SPACING / 2 if line.beside else 0
        beams = [beam("now", line.now, y - shift)]
        if line.beside:
            beams.append(beam("beside", line.beside, y + shift))
        rows.append(Row(line.label, y, tuple(beams), x(line.limit), line.is_bad))
    marks = tuple(Tick(x(v), number(v)) for v in x_values)
    words = "; ".join(
        f"{line.label}: {figure(line.now.value)}, limit {line.limit:g}" for line in lines
    )
    return Chart(title, box, marks, x(0), tuple(rows), _THICKNESS, words)


def _task_chart(found: "Audit", task: str) -> Chart:
    return chart_of(
        task,
        [
            _Line(v.shortcut.title, v.score, v.control, v.shortcut.limit, v.is_bad)
            for v in found.verdicts
            if v.task == task
        ],
    )


def _catch_chart(catches: Sequence["PlantedBug"]) -> Chart:
    lines = [
        _Line(f"{n}. {c.shortcut.name}", c.planted, c.without, c.limit, not c.caught)
        for n, c in enumerate(catches, start=1)
    ]
    return chart_of("planted bugs", lines)


def _figure(value: float) -> str:
    return f"{value:.3f}"
