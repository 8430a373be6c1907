"""The report: one run, or several side by side, as a self-contained HTML page."""

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.shards.manifest import Manifest
from training.report.charts import (
    PERCENT,
    LineChart,
    Recorded,
    curves,
    own_styles,
    several_tasks,
)
from training.report.results import Results, read_results
from training.report.runs import InputPart, RunPart, input_parts, keys_of, picture_files, run_part
from training.report.scores import Scores, scores_of
from training.report.templates import page_environment

REPORT_FILE = "report.html"

_SCRIPT_FILE = "report.sort.html"
_OF_TRUNKS = ("random", "supervised")
"""Names that a run may not have on the page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the template shows."""

    runs: Sequence[RunPart]
    inputs: Sequence[InputPart]
    styles: Mapping[str, int]
    """Run to style: colour, marker and dashes."""
    summary: Sequence[str]
    """A single run in a few words."""
    curves: Sequence[LineChart]
    scores: Scores | None
    pictures: str
    """Folder that holds the pictures as files."""
    command: str
    """Command that makes this page."""

    @property
    def several(self) -> bool:
        """Whether runs stand side by side."""
        return len(self.runs) > 1

    @property
    def title(self) -> str:
        """The names of the runs."""
        names = [run.name for run in self.runs]
        return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])

    @property
    def sections(self) -> dict[str, str]:
        """Section id to heading, in order."""
        found = {
            "input": "What went in",
            "views": "What the network sees",
            "curves": "Curves",
            "audit": "Shortcut audit",
            "transfer": "Transfer",
            "filters": "First-layer filters",
            "time": "Time and throughput",
            "repeat": "How to repeat",
        }
        if not any(run.results.audit for run in self.runs):
            del found["audit"]
        if not self.pretrained:
            del found["views"], found["curves"], found["filters"]
        return found

    @property
    def pretrained(self) -> list[RunPart]:
        """Runs that are more than a transfer."""
        return [run for run in self.runs if not run.results.is_transfer]


def write_report(
    runs: Path | Sequence[Path], on_progress: Callable[[str], None], out: Path | None = None
) -> Path:
    """Write the page, and its pictures as PNGs into a folder of the same name.

    What a run lacks becomes a sentence.

    Args:
        runs: The `out` folder of a run, finished or not, or several of them.
        on_progress: Called with the name of each part before it is made.
        out: File of the page; defaults to report.html in the folder of a single run, or in the
            common parent folder of several.

    Raises:
        ConfigError: A folder holds no run or is given twice, one of its files is damaged or of
            another version, or `out` is no place for the page.
    """
    runs = [runs] if isinstance(runs, Path) else runs
    path = _page_file(runs, out)
    on_progress("reading the runs")
    results = dict(zip(_names(runs), [read_results(run) for run in runs], strict=True))
    styles = dict(zip(results, own_styles(), strict=False))
    on_progress("sample images")
    inputs = input_parts(results)
    parts = []
    for (name, one), key in zip(results.items(), keys_of(list(results)), strict=True):
        on_progress(f"puzzles and filters of {name}")
        parts.append(run_part(name, key, one))
    on_progress("curves and tables")
    recorded = [Recorded(n, styles[n], r.records, r.config.pretext) for n, r in results.items()]
    scores = scores_of(results, styles)
    page = Page(
        runs=parts,
        inputs=inputs,
        styles=styles,
        summary=_summary(parts[0].results, scores) if len(parts) == 1 else [],
        curves=curves(recorded),
        scores=scores,
        pictures=f"{path.stem}/",
        command=shlex.join(
            ["tessera", "report", *map(str, runs), *(["--out", str(out)] if out else [])]
        ),
    )
    on_progress("pictures")
    _write_pictures(page, path.with_suffix(""))
    # A file name may hold half of a surrogate pair, which UTF-8 cannot encode.
    write_atomic(path, _render(page).encode("utf-8", "xmlcharrefreplace"))
    return path


def _page_file(runs: Sequence[Path], out: Path | None) -> Path:
    whole = [run.resolve() for run in runs]
    twice = [run for run in whole if whole.count(run) > 1]
    if twice:
        raise ConfigError(f"run (={twice[0]}) is given twice; give each folder once.")
    if out is None and len({run.parent for run in whole}) > 1 < len(runs):
        listed = ", ".join(map(str, runs))
        raise ConfigError(
            f"runs (={listed}) lie in different folders; say where the page goes: --out PAGE.html"
        )
    if out is None:
        return (runs[0] if len(runs) == 1 else runs[0].parent) / REPORT_FILE
    if out.is_dir() or out.suffix != ".html" or not out.parent.is_dir():
        raise ConfigError(f"out (={out}) must be a file in a folder that exists, named *.html.")
    return out


def _names(runs: Sequence[Path]) -> list[str]:
    """Name each run after its folder, or by its path if that name is ambiguous."""
    names = [run.resolve().name for run in runs]
    counts = Counter([*names, *_OF_TRUNKS])
    return [
        name if counts[name] == 1 else str(run.resolve())
        for name, run in zip(names, runs, strict=True)
    ]


def _summary(results: Results, scores: Scores | None) -> list[str]:
    parts = []
    if isinstance(results.manifest, Manifest):
        ledger = results.manifest.ledger
        parts.append(f"{ledger.accepted:,} of {ledger.inputs:,} images")
    if results.pretrain and results.config.pretext:
        spent, rate = _duration(results.pretrain.seconds), results.pretrain.images_per_s
        parts.append(f"{spent} of {results.config.pretext.name} at {rate:,.0f} images/s")
    if scores:
        row = scores.rows[0]
        found = {name: f"{entry.reach.mean:.1f}{PERCENT}" for name, entry in row.best.items()}
        mine = found.pop("pretrained", None)
        others = ", ".join(f"{name} {score}" for name, score in found.items())
        shown = f"{mine} ({others})" if mine and others else mine or others
        parts.append(f"{row.label}: {shown}")
    return parts


def _write_pictures(page: Page, folder: Path) -> None:
    for run in page.runs:
        place = folder / run.key if page.several else folder
        place.mkdir(parents=True, exist_ok=True)
        for name, encode in picture_files(run, page.inputs).items():
            write_atomic(place / name, encode())


def _render(page: Page) -> str:
    here = Path(__file__).parent
    environment = page_environment()
    script = (here / _SCRIPT_FILE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "percent": PERCENT,
        "tasks_of": several_tasks,
        "script": script,
        "script_hash": f"sha256-{digest}",
    }
    environment.filters |= {
        "duration": _duration,
        "signed": lambda points: f"{points:+.1f}".replace("-", "\N{MINUS SIGN}"),
    }
    return environment.get_template(REPORT_FILE).render(page=page)


def _duration(seconds: float) -> str:
    """Format a duration for reading.

    >>> _duration(8.04), _duration(150), _duration(7260)
    ('8.0 s', '150 s', '121 min 0 s')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60:,} min {int(seconds) % 60} s"
