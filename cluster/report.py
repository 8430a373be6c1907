"""`tessera report`: the page of a run, and results.json, which every stage adds to."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.screen import say
from pipeline.atomic import write_json

RESULTS_FILE = "results.json"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default RUN/report.html.")
    ] = None,
) -> None:
    """Write one self-contained page of a run, or of several compared.

    Example: tessera report runs/jigsaw runs/rotation --out runs/both.html
    """
    run_report(runs, Console(), out=out)


def run_report(runs: Sequence[Path], console: Console, *, out: Path | None = None) -> Path:
    """Write the page of a run, or of several compared, to `out`."""
    from training.report.page import write_report

    started = time.monotonic()
    with console.status("report"):
        path = write_report(runs, lambda _: None, out)
    if len(runs) == 1:
        add_results(runs[0], "report", started, report=path.name)
    say(console, f"report: {path}")
    return path


def add_results(out: Path, stage: str, started: float, **parts: Any) -> None:
    """Merge a stage's results, and its seconds since `started`, into results.json."""
    results = read_results(out)
    seconds = {**results.get("seconds", {}), stage: round(time.monotonic() - started, 1)}
    write_json(out / RESULTS_FILE, {**results, **parts, "seconds": seconds})


def read_results(out: Path) -> dict[str, Any]:
    """Read results.json, empty where there is none yet."""
    path = out / RESULTS_FILE
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results
