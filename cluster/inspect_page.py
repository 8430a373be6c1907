"""`tessera inspect`: what a set of shards holds, as tables and as one HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.screen import bar
from pipeline.atomic import write_atomic, write_json
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path
from pipeline.remote.location import redact_url as without_secrets
from pipeline.shards.manifest import folder_of
from pipeline.upkeep.inspection import Bin, Inspection, Thumbnail, inspect
from training.report.templates import page_environment

PAGE = "inspect.html"

_MOST_CLASSES = 30


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars side by side with their names and counts."""

    title: str
    bins: Sequence[Bin]
    more: int
    """Bars that are not shown."""

    @property
    def most(self) -> int:
        """Count of the longest bar."""
        return max((one.count for one in self.bins), default=1) or 1


def run_inspect(
    manifest: str, page: Path | None, console: Console, *, json_file: Path | None
) -> Path:
    """Print the tables and write the page; it goes beside the manifest where `page` is None.

    Raises:
        ConfigError: The shards cannot be read, or are remote and no page is named.
    """
    if page is None:
        if is_remote(folder_of(manifest)):
            raise ConfigError(
                f"manifest (={without_secrets(manifest)}) is remote; name a file: --page FILE."
            )
        page = local_path(folder_of(manifest)) / PAGE
    with bar(console, "inspect", counts=True) as line:
        found = inspect(manifest, on_progress=line.update)
    for histogram in histograms(found):
        console.print(_table(histogram))
    write_atomic(page, _render(found, without_secrets(manifest)).encode("utf-8"))
    if json_file:
        write_json(json_file, found.summary())
    console.print(found.manifest.ledger.describe(), highlight=False, soft_wrap=True)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
    return page


def histograms(found: Inspection) -> list[Histogram]:
    """List what is counted, without what nothing is known of."""
    ledger = found.manifest.ledger
    verdicts = [
        Bin("accepted", ledger.accepted),
        *(Bin(f"quarantined: {reason}", n) for reason, n in ledger.quarantined.items()),
        *(Bin(f"filtered: {reason}", n) for reason, n in ledger.filtered.items()),
        *([Bin("duplicate", ledger.duplicate)] if ledger.duplicate else []),
    ]
    classes = found.classes
    listed = [
        Histogram("Inputs by verdict", verdicts, 0),
        Histogram("Stored images by short side", found.short_sides, 0),
        Histogram("Stored images by long side / short side", found.ratios, 0),
        Histogram("Accepted inputs by format", found.formats, 0),
        Histogram("Classes", classes[:_MOST_CLASSES], max(0, len(classes) - _MOST_CLASSES)),
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


def _uri(picture: Thumbnail) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"


def _render(found: Inspection, manifest: str) -> str:
    environment = page_environment(Path(__file__).parent)
    environment.filters["uri"] = _uri
    return environment.get_template(PAGE).render(
        manifest=manifest, found=found, histograms=histograms(found)
    )
