"""What a person sees of a transfer: the best layer of each job and trunk, and a last line."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

Entry = Mapping[str, Any]
"""One entry of the list of results."""


def transfer_table(entries: Sequence[Entry]) -> Group:
    """Show for each job and trunk the best layer: mean, range over seeds or draws, and name.

    A line for each trunk: side by side, five of them are cut on a terminal of 80 columns.
    """
    trunks = list(dict.fromkeys(entry["trunk"] for entry in entries))
    table = Table()
    for name in ("job", "trunk"):
        table.add_column(name)
    table.add_column("score", justify="right")
    for name in ("least to most", "layer"):
        table.add_column(name, overflow="fold")
    for label, ours in _rows(entries).items():
        best = {trunk: _best(ours, trunk) for trunk in trunks}
        highest = max(entry["score"] for entry in best.values() if entry)
        for number, (trunk, entry) in enumerate(best.items()):
            table.add_row("" if number else label, trunk, *_cells(entry, highest))
        table.add_section()
    return _titled("Transfer: the best layer of each trunk, percent", table)


def layer_table(summary: Mapping[str, Any]) -> Group:
    """Show every layer of the job svm; the best of each trunk in bold."""
    layers = summary["layers"]
    table = Table()
    table.add_column("layer")
    gains = {"random", "pretrained"} <= set(layers)
    for name in (*layers, *(["gain"] if gains else [])):
        table.add_column(name, justify="right")
    best = {name: summary[f"best_{name}"] for name in layers}
    for layer in next(iter(layers.values())):
        scores = {name: by[layer]["score"] for name, by in layers.items()}
        cells = [_bold(f"{s:.1f}", on=s == best[name]) for name, s in scores.items()]
        table.add_row(layer, *cells, *_gain(scores, shown=gains))
    table.add_section()
    every = [f"{score:.1f}" for score in best.values()]
    table.add_row("best", *every, *_gain(best, shown=gains), style="bold")
    images = (
        f"{summary['train_images']} training and {summary['test_images']} test images of "
        f"{summary['classes']} classes"
    )
    return _titled(f"Transfer: {summary['metric']}\n{images}", table)


def last_line(entries: Sequence[Entry]) -> str:
    """Say in one line what the first job found of every trunk."""
    if not entries:
        return "transfer: no job was finished"
    label, ours = next(iter(_rows(entries).items()))
    trunks = list(dict.fromkeys(entry["trunk"] for entry in ours))
    found = [entry for entry in (_best(ours, trunk) for trunk in trunks) if entry]
    shown = ", ".join(f"{e['trunk']} {e['score']:.1f} %{_at(e)}" for e in found)
    return f"transfer: {label}: {shown} ({ours[0]['metric']})"


def _rows(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Group entries by what can be compared: a job, and the k of those that have several."""
    rows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry["job"], entry["metric"]), []).append(entry)
    named: dict[str, list[Entry]] = {}
    for (job, metric), ours in rows.items():
        details = ours[0]["details"]
        k = details.get("shots", details.get("neighbours") if job == "knn" else None)
        label = job if k is None else f"{job} k={k}"
        named[label if label not in named else f"{label}: {metric}"] = ours
    return named


def _best(entries: Sequence[Entry], trunk: str) -> Entry | None:
    ours = [entry for entry in entries if entry["trunk"] == trunk]
    return max(ours, key=lambda entry: entry["score"], default=None)


def _cells(entry: Entry | None, highest: float) -> list[str]:
    if entry is None:
        return ["failed", "", ""]
    low, high = entry["range"]
    spread = f"{low:.1f} to {high:.1f}" if low < high else ""
    score = _bold(f"{entry['score']:.1f}", on=entry["score"] == highest)
    return [score, spread, entry["layer"] or ""]


def _at(entry: Entry) -> str:
    return f" {entry['layer']}" if entry["layer"] else ""


def _gain(scores: Mapping[str, float], *, shown: bool) -> list[str]:
    return [f"{scores['pretrained'] - scores['random']:+.1f}"] if shown else []


def _titled(title: str, table: Table) -> Group:
    """Put a title above; one of the table itself would be cut into lines as short as the table."""
    return Group(Text(title, style="table.title"), table)


def _bold(text: str, *, on: bool) -> str:
    return f"[bold]{text}[/]" if on else text
