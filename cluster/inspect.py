"""`tessera inspect`: what a set of shards holds, as tables and as one HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.screen import JsonFile, Manifest, bar, say
from pipeline.atomic import write_atomic, write_json
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path, redact_url

if TYPE_CHECKING:
    from pipeline.upkeep.inspection import Bin, Inspection, Thumbnail

PAGE = "inspect.html"

_MAX_CLASSES = 30


def inspect(
    manifest: Manifest,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page goes; default beside the manifest."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show what a set of shards holds: counts, histograms and contact sheets.

    Example: tessera inspect shards/
    """
    from pipeline.shards.manifest import folder_of
    from pipeline.upkeep.inspection import inspect as inspect_shards

    if page is None:
        if is_remote(folder_of(manifest)):
            raise ConfigError(
                f"manifest (={redact_url(manifest)}) is remote; name a file: --page FILE."
            )
        page = local_path(folder_of(manifest)) / PAGE
    console = Console()
    with bar(console, "inspect", counts=True) as line:
        found = inspect_shards(manifest, on_progress=line.update)
    for histogram in _histograms(found):
        console.print(_table(histogram))
    write_atomic(page, _render(found, redact_url(manifest)).encode("utf-8"))
    if json_file:
        write_json(json_file, found.summary())
    say(console, found.manifest.describe())
    say(console, f"page: {page}")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Named bars with their counts."""

    title: str
    bins: Sequence["Bin"]
    more: int
    """Number of bars not shown."""

    @property
    def most(self) -> int:
        """Count of the longest bar, at least 1."""
        return max((one.count for one in self.bins), default=1) or 1


def _histograms(found: "Inspection") -> list[Histogram]:
    """Return the histograms that are not empty."""
    from pipeline.upkeep.inspection import Bin

    ledger = found.manifest.ledger
    verdicts = [
        Bin("accepted", ledger.accepted),
        *(Bin(f"quarantined: {reason}", n) for reason, n in ledger.quarantined.items()),
        *(Bin(f"filtered: {reason}", n) for reason, n in ledger.filtered.items()),
        *([Bin("duplicate", ledger.duplicate)] if ledger.duplicate else []),
    ]
    dropped = [Bin(reason, n) for reason, n in found.manifest.notes_dropped.items()]
    classes = found.classes
    notes = [Bin(name, count) for name, count in found.manifest.notes.items()]
    if conflicts := found.manifest.label_conflicts:
        notes.append(Bin("no label: copies contradict each other", conflicts))
    listed = [
        Histogram("Inputs by verdict", verdicts, 0),
        Histogram("Notes dropped", dropped, 0),
        Histogram("Stored images by short side", found.short_sides, 0),
        Histogram("Stored images by long side / short side", found.ratios, 0),
        Histogram("Accepted inputs by format", found.formats, 0),
        Histogram("Stored images by note", notes, 0),
        Histogram("Classes", classes[:_MAX_CLASSES], max(0, len(classes) - _MAX_CLASSES)),
    ]
    return [one for one in listed if one.bins]


def _table(histogram: Histogram) -> Table:
    table = Table(title=histogram.title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for one in histogram.bins:
        length = round(30 * one.count / histogram.most)
        table.add_row(one.name, f"{one.count:,}", "\u2588" * length)
    if histogram.more:
        table.add_row(f"and {histogram.more} more", "", "")
    return table


def _uri(picture: "Thumbnail") -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"


def _render(found: "Inspection", manifest: str) -> str:
    from training.report.templates import page_environment

    environment = page_environment(Path(__file__).parent)
    environment.filters["uri"] = _uri
    return environment.get_template(PAGE).render(
        manifest=manifest, found=found, histograms=_histograms(found)
    )
